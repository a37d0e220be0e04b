"""The retry ladder as a table."""

import pytest

from worker.webhooks.retry import RUNGS_SECONDS, RetrySchedule


@pytest.mark.parametrize(
    ("attempt", "retry_after", "delay"),
    [
        (1, None, 30),
        (2, None, 120),
        (3, None, 600),
        (4, None, 3600),
        (5, None, 21600),
        (6, None, 21600),
        (16, None, 21600),
        (17, None, None),
        (1000, None, None),
        (1, 1, 30),
        (1, 30, 30),
        (1, 31, 120),
        (1, 3000, 3600),
        (4, 5, 3600),
        (1, 10**9, 21600),
        (17, 5, None),
        (1, 0, 30),
    ],
)
def test_the_wait_after_a_failed_try(
    attempt: int, retry_after: float | None, delay: float | None
) -> None:
    assert RetrySchedule().next_delay(attempt, retry_after) == delay


def test_a_receiver_has_about_three_days() -> None:
    schedule = RetrySchedule()
    waits = [schedule.next_delay(attempt) or 0 for attempt in range(1, schedule.tries + 1)]
    assert 2.9 < sum(waits) / 86_400 < 3.1


def test_every_wait_is_a_rung() -> None:
    schedule = RetrySchedule()
    waits = {schedule.next_delay(n, r) for n in range(1, 17) for r in (None, 7.5, 100, 99999)}
    assert waits <= set(RUNGS_SECONDS)


def test_an_operator_may_have_another_ladder() -> None:
    schedule = RetrySchedule((1.0, 2.0), total_seconds=9.0)
    assert [schedule.next_delay(attempt) for attempt in range(1, 7)] == [1, 2, 2, 2, 2, None]
