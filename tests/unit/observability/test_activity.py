"""What is remembered of running and ended jobs, and what the driver's table says."""

import pytest

from worker.contract.pipe import StageEvent, StepEvent
from worker.observability import metrics
from worker.observability.activity import CURVE_POINTS, RECENT_JOBS, Activity
from worker.observability.gpus import parse_readings


def step(number, total=1000, loss=0.5):
    return StepEvent(
        step=number,
        total_steps=total,
        epoch=1,
        total_epochs=1,
        loss=loss,
        learning_rate=1e-4,
        step_seconds=0.1,
        estimated_seconds=1.0,
    )


@pytest.fixture
def activity():
    return Activity()


def begin(activity, job_id="j", samples=2):
    return activity.begin(job_id, 1, attempt=1, samples_a_step=samples, waited_seconds=None)


def value(name, **labels):
    return metrics.REGISTRY.get_sample_value(f"lora_worker_{name}", labels)


def test_steps_and_samples_are_counted_once_however_seldom_they_are_told(activity):
    steps, samples = value("training_steps_total"), value("training_samples_total")
    job = begin(activity)
    for number in (1, 2, 10):
        job.on_event(step(number))
    assert value("training_steps_total") - steps == 10
    assert value("training_samples_total") - samples == 20
    activity.leave(job)


def test_the_curve_keeps_the_whole_training_within_its_bound(activity):
    job = begin(activity)
    for number in range(1, 10_001):
        job.on_event(step(number, 10_000, loss=1 / number))
    curve = job.as_dict()["curve"]
    assert CURVE_POINTS / 3 < len(curve) <= CURVE_POINTS
    assert curve[0][0] == 1
    assert curve[-1][0] > 9_900
    assert [s for s, _ in curve] == sorted({s for s, _ in curve})
    activity.leave(job)


def test_a_jobs_gauges_go_with_it_and_its_place_is_given_again(activity):
    first, second = begin(activity, "a"), begin(activity, "b")
    assert (first.slot, second.slot) == (0, 1)
    first.on_event(step(5))
    first.on_checkpoint(5, True)
    assert value("training_loss", slot="0") == 0.5
    assert value("training_last_checkpoint_timestamp_seconds", slot="0")
    activity.leave(first)
    assert value("training_loss", slot="0") is None
    assert value("training_last_checkpoint_timestamp_seconds", slot="0") is None
    assert begin(activity, "c").slot == 0


def test_the_time_of_the_last_step_is_there_only_while_a_job_trains(activity):
    job = begin(activity)
    job.on_event(StageEvent(stage="training", status="started"))
    assert value("training_last_step_timestamp_seconds", slot="0") is None
    job.on_event(step(1))
    assert value("training_last_step_timestamp_seconds", slot="0")
    job.on_event(StageEvent(stage="exporting", status="started"))
    assert value("training_last_step_timestamp_seconds", slot="0") is None
    activity.leave(job)


def test_an_ended_job_is_remembered_with_what_it_had_reached(activity):
    job = begin(activity, "done")
    job.on_event(step(7, loss=0.25))
    activity.leave(job)
    activity.ended("done", 1, "completed")
    activity.ended("never begun", 2, "failed", "INVALID_JOB", "No.")
    never, done = activity.as_dict()["recent"]
    assert (done["steps"], done["loss"], done["curve"]) == (7, 0.25, [(7, 0.25)])
    assert (never["steps"], never["code"], never["seconds"]) == (0, "INVALID_JOB", 0.0)


def test_only_the_last_jobs_are_remembered(activity):
    for number in range(RECENT_JOBS + 5):
        activity.ended(str(number), 1, "completed")
    assert len(activity.as_dict()["recent"]) == RECENT_JOBS
    assert activity.ends == RECENT_JOBS + 5


def test_the_drivers_table_is_read_and_what_it_does_not_know_left_out():
    table = (
        "0, NVIDIA H200, 1024, 143771, 37, 41, 580.95.05\n"
        "1, NVIDIA A10G, 0, 23028, [N/A], [N/A], 580.95.05\n"
        "No devices were found\n"
    )
    first, second = parse_readings(table)
    assert (first.name, first.memory_used_bytes, first.utilization) == ("NVIDIA H200", 2**30, 0.37)
    assert (first.celsius, first.driver) == (41.0, "580.95.05")
    assert (second.index, second.utilization, second.celsius) == ("1", None, None)
