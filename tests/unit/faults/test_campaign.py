"""How the campaign plays its cases: one whose fault did not happen has shown nothing."""

import pytest

from tests.faults.__main__ import TRIES, play_all
from tests.faults.case import Case
from tests.faults.checker import Counts
from tests.faults.scene import PointNotReachedError


def case_that(*ends):
    """A case that ends so, one time after the other."""
    coming = iter(ends)

    def play(lab):
        end = next(coming)
        if isinstance(end, Exception):
            raise end
        return end

    return Case("unit", "case", play)


def counts_of(case):
    [(_, counts, _)] = play_all([case], lab=None, lanes=3)
    return counts


def test_a_case_whose_point_was_not_reached_is_played_again():
    assert counts_of(case_that(PointNotReachedError("no"), Counts(published=1))) == Counts(
        published=1
    )


def test_a_case_whose_point_is_never_reached_is_not_clean():
    counts = counts_of(case_that(*[PointNotReachedError("not within 30 s")] * TRIES))
    assert counts.findings == ["not played: not within 30 s"]


@pytest.mark.parametrize("end", [Counts(findings=["lost: a job"]), TimeoutError("no end")])
def test_a_case_that_broke_a_promise_is_not_played_again(end):
    counts = counts_of(case_that(end, Counts()))
    assert not counts.clean
