"""How does a curve become a drawing? Points in, the parts of an SVG line chart out; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

#: Most points of a drawn line.
_POINTS = 240

#: Values that differ by less are one: powers of ten cannot be had of a smaller difference.
_FLAT = 1e-290

#: Share of a curve that its moving average spans, on both sides together.
_WINDOW = 0.1

#: Room around the plot, pixels: for the labels of the axes.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 28.0


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, pixels from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve: `path` as SVG's `points`, and its dots, if it has any."""

    name: str
    path: str
    dots: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A line chart in pixels: x to the right, y down."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_chart(
    curves: Sequence[tuple[str, Sequence[Point]]],
    *,
    width: float,
    height: float,
    dotted: bool = False,
) -> Chart | None:
    """Draw named curves of finite points on common axes; None where there is nothing to draw.

    Args:
        curves: each a name and its points, x ascending: steps, of which only whole ones are marked.
        width: of the whole, pixels.
        height: of the whole, pixels.
        dotted: mark each point.
    """
    points = [point for _, curve in curves for point in curve]
    if not points:
        return None
    x_low, x_high = _range([x for x, _ in points])
    y_values = _nice_ticks(*_range([y for _, y in points]), most=5)
    y_low, y_high = y_values[0], y_values[-1]
    right, bottom = width - _RIGHT, height - _BOTTOM

    def place(point: Point) -> Point:
        x = _LEFT + (point[0] - x_low) / (x_high - x_low) * (right - _LEFT)
        y = bottom - (point[1] - y_low) / (y_high - y_low) * (bottom - _TOP)
        return round(x, 1), round(y, 1)

    x_values = _nice_ticks(x_low, x_high, most=width / 90, whole=True)
    step = y_values[1] - y_values[0]
    return Chart(
        width=width,
        height=height,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        x_ticks=tuple(
            Tick(place((x, y_low))[0], f"{x:,.0f}") for x in x_values if x_low <= x <= x_high
        ),
        y_ticks=tuple(Tick(place((x_low, y))[1], _label(y, step)) for y in y_values),
        lines=tuple(
            Line(
                name,
                " ".join(f"{x:g},{y:g}" for x, y in map(place, curve)),
                tuple(map(place, curve)) if dotted else (),
            )
            for name, curve in curves
        ),
    )


def thinned(values: Sequence[float]) -> list[Point]:
    """A curve over the steps 1 … N as at most 240 points: the means of neighbouring values.

    What is not finite is left out.
    """
    size = max(1, math.ceil(len(values) / _POINTS))
    points = []
    for start in range(0, len(values), size):
        group = [value for value in values[start : start + size] if math.isfinite(value)]
        if group:
            points.append((start + (len(group) + 1) / 2, sum(group) / len(group)))
    return points


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The moving average of a curve over a tenth of it, over what there is of that at its ends."""
    reach = max(1, round(len(points) * _WINDOW / 2))
    found = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - reach) : index + reach + 1]]
        found.append((x, sum(window) / len(window)))
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value; a little around them where they are equal."""
    low, high = min(values), max(values)
    if high - low > _FLAT:
        return low, high
    margin = abs(low) * 0.1
    return (low - margin, high + margin) if margin > _FLAT else (low - 1, high + 1)


def _nice_ticks(low: float, high: float, most: float, *, whole: bool = False) -> list[float]:
    """About `most` round numbers, the first not above `low`, the last not below `high`.

    With `whole` they are whole numbers.
    """
    raw = (high - low) / max(1.0, most)
    if whole:
        raw = max(1.0, raw)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(
        step
        for step in (factor * power for factor in (1, 2, 2.5, 5, 10))
        if step >= raw * 0.999 and (step.is_integer() or not whole)
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _label(value: float, step: float) -> str:
    """`value` with as many decimals as neighbouring ticks need to differ."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**decimals, 6) % 1:  # a step of 0.025
        decimals += 1
    return f"{value:.{decimals}f}"
