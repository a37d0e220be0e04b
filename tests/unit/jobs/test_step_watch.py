"""When is a training stuck? A table of silences."""

import pytest

from worker.contract.errors import ErrorCode
from worker.contract.pipe import FailedEvent, StageEvent, StepEvent
from worker.jobs.step_watch import StepWatch


def step(number, total=100, seconds=1.0):
    return StepEvent(
        step=number,
        total_steps=total,
        epoch=1,
        total_epochs=1,
        loss=1.0,
        learning_rate=1e-4,
        step_seconds=seconds,
        estimated_seconds=1.0,
    )


@pytest.mark.parametrize(
    ("events", "now", "silent"),
    [
        ([], 10_000, None),  # nothing has begun
        ([step(1)], 59, None),  # quick steps: the least patience
        ([step(1)], 61, 61),
        ([step(1, seconds=30)], 299, None),  # slow steps: ten of them
        ([step(1, seconds=30)], 301, 301),
        ([step(1), step(2, seconds=30)], 200, None),  # the newest counts
        ([step(100)], 10_000, None),  # the last step is done
        ([step(5), StageEvent(stage="exporting", status="started")], 10_000, None),
    ],
)
def test_silence_is_judged_by_the_usual_step(events, now, silent):
    watch = StepWatch(least_seconds=60)
    for event in events:
        watch.hear(event, 0.0)
    assert watch.silent_seconds(now) == silent


def beside(stage, status):
    return StageEvent(job_id="other", stage=stage, status=status)


FAILED = FailedEvent(job_id="other", code=ErrorCode.INVALID_IMAGE, message="no picture")


@pytest.mark.parametrize(
    ("events", "now", "silent"),
    [
        # while another job of the trainer loads or exports, nobody is called stuck
        ([(50, beside("caching", "started"))], 10_000, None),
        ([(50, beside("exporting", "started"))], 10_000, None),
        # from its end on the patience begins anew
        ([(50, beside("caching", "started")), (500, beside("caching", "ended"))], 560, None),
        ([(50, beside("caching", "started")), (500, beside("caching", "ended"))], 561, 61),
        ([(50, beside("caching", "started")), (500, FAILED)], 561, 61),
        # another one's training excuses nothing for long, its steps nothing at all
        ([(50, beside("training", "started"))], 111, 61),
        ([(50, step(7))], 61, 61),
    ],
)
def test_what_a_neighbour_loads_holds_up_the_others(events, now, silent):
    watch = StepWatch(least_seconds=60)
    watch.hear(step(1), 0.0)
    for at, event in events:
        watch.hear_beside(event, at)
    assert watch.silent_seconds(now) == silent


def test_what_a_neighbour_does_is_no_step_of_ours():
    watch = StepWatch(least_seconds=60)
    watch.hear_beside(beside("training", "started"), 0.0)
    assert watch.silent_seconds(10_000) is None
