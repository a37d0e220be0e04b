"""When has a job had its time? A table of what it waited for."""

import pytest

from worker.contract.pipe import StageEvent
from worker.jobs.time_limit import TimeLimit


def waiting(status):
    return StageEvent(stage="waiting", status=status)


TRAINING = StageEvent(stage="training", status="started")


@pytest.mark.parametrize(
    ("heard", "now", "over"),
    [
        ([], 100, False),
        ([], 101, True),
        ([(50, TRAINING)], 101, True),  # to load and to encode is the job's own work
        ([(50, waiting("started"))], 10_000, False),
        ([(50, waiting("started")), (80, waiting("ended"))], 130, False),
        ([(50, waiting("started")), (80, waiting("ended"))], 131, True),
        ([(5, waiting("ended"))], 101, True),
        (
            [
                *((0, waiting("started")), (60, waiting("ended"))),
                *((70, waiting("started")), (90, waiting("ended"))),
            ],
            181,
            True,
        ),
    ],
)
def test_the_time_that_a_job_waits_for_room_is_not_its_own(heard, now, over):
    limit = TimeLimit(100, 0.0)
    for at, event in heard:
        limit.hear(event, at)
    assert limit.is_over(now) == over
