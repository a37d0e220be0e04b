"""When is a training stuck? A table of silences."""

import pytest

from worker.contract.pipe import StageEvent, StepEvent
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
