"""Curves become drawings whose axes tell the truth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.report.chart import line_chart, smoothed, thinned

VALUES = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


@given(st.lists(VALUES, min_size=1, max_size=40))
def test_any_curve_lies_between_its_axes_and_the_ticks_tell_where(values):
    curve = list(enumerate(values, 1))
    chart = line_chart([("loss", curve)], width=500, height=240, dotted=True)
    [line] = chart.lines
    assert len(line.dots) == len(values)
    assert all(chart.left - 0.1 <= x <= chart.right + 0.1 for x, _ in line.dots)
    assert all(chart.top - 0.1 <= y <= chart.bottom + 0.1 for _, y in line.dots)
    assert len({tick.label for tick in chart.y_ticks}) == len(chart.y_ticks)


def test_a_point_at_a_tick_is_drawn_at_the_tick():
    chart = line_chart([("loss", [(0, 0.0), (50, 0.5), (100, 1.0)])], width=500, height=240)
    ticks = {tick.label: tick.at for tick in chart.y_ticks}
    middle = [float(y) for _, y in (p.split(",") for p in chart.lines[0].path.split())][1]
    between = (ticks["0.4"] + ticks["0.6"]) / 2
    assert math.isclose(middle, between, abs_tol=0.1)


@pytest.mark.parametrize("width", [340, 500])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 13, 14, 30, 100, 1200, 50_000])
def test_the_ticks_of_a_job_of_any_length_are_distinct_whole_steps(steps, width):
    first, last = (1, steps) if steps > 1 else (0, 1)
    chart = line_chart([("loss", [(first, 1.0), (last, 0.5)])], width=width, height=240)
    found = [int(tick.label.replace(",", "")) for tick in chart.x_ticks]
    assert found
    assert found == sorted(set(found))
    across = chart.right - chart.left
    places = [chart.left + (step - first) / (last - first) * across for step in found]
    assert [tick.at for tick in chart.x_ticks] == pytest.approx(places, abs=0.1)


def test_three_steps_are_marked_one_by_one():
    chart = line_chart([("loss", [(1, 1.0), (2, 0.7), (3, 0.5)])], width=500, height=240)
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]


def test_without_points_there_is_no_chart():
    assert line_chart([("loss", [])], width=500, height=240) is None


def test_fifty_thousand_steps_become_few_points_with_the_same_mean():
    losses = [math.sin(step) + 2 for step in range(50_000)]
    points = thinned(losses)
    assert len(points) <= 240
    assert math.isclose(sum(y for _, y in points) / len(points), sum(losses) / 50_000, rel_tol=1e-3)
    assert points[0][0] >= 1
    assert points[-1][0] <= 50_000


def test_values_that_are_no_numbers_are_left_out():
    assert thinned([1.0, math.nan, 3.0]) == [(1.0, 1.0), (3.0, 3.0)]


def test_a_moving_average_scatters_less_and_keeps_the_level():
    noisy = [(float(x), 1 + (-1) ** x) for x in range(200)]
    values = [y for _, y in smoothed(noisy)]
    assert max(values) - min(values) < 0.5
    assert all(abs(value - 1) < 0.3 for value in values)
