"""Progress begins at once, never goes back, and never waits for a receiver."""

import threading

from worker.contract.pipe import StageEvent, StepEvent
from worker.jobs.progress import ProgressReporter


def step(number, total=10, left=5.0):
    return StepEvent(
        step=number,
        total_steps=total,
        epoch=1,
        total_epochs=1,
        loss=0.5,
        learning_rate=1e-4,
        step_seconds=1.0,
        estimated_seconds=left,
    )


class Sent:
    """Keeps what was sent, and says when there is more."""

    def __init__(self):
        self.bodies = []
        self.more = threading.Condition()

    def __call__(self, body, sequence):
        with self.more:
            self.bodies.append((sequence, body.progress))
            self.more.notify_all()

    def wait_for(self, count):
        with self.more:
            assert self.more.wait_for(lambda: len(self.bodies) >= count, timeout=10)
        return self.bodies


def reporter(send, *, floor=0, interval=60.0, epoch=1):
    return ProgressReporter(
        send,
        job_id="j",
        style_id=1,
        epoch=epoch,
        floor_percent=floor,
        interval_seconds=interval,
    )


def test_the_first_report_goes_out_at_once_with_0_percent():
    sent = Sent()
    progress = reporter(sent)
    [(_, first)] = sent.wait_for(1)
    assert (first.progress_percent, first.stage) == (0, "preparing")
    assert progress.close(5)


def test_the_newest_report_wins():
    sent = Sent()
    progress = reporter(sent, interval=0.5)
    sent.wait_for(1)
    for number in range(1, 6):
        progress.on_step(step(number))
    bodies = sent.wait_for(2)
    assert bodies[1][1].current_step == 5
    progress.close(5)


def test_reports_say_the_plan_from_the_training_on():
    progress = reporter(Sent())
    plan = {"micro_batch": 2, "gradient_checkpointing": True}
    assert progress.latest.plan is None
    started = StageEvent(stage="training", status="started", fields={"plan": plan})
    progress.on_stage(started)
    assert progress.latest.plan == plan
    progress.on_step(step(3))
    progress.on_stage(StageEvent(stage="exporting", status="started"))
    assert progress.latest.plan == plan
    assert progress.close(5)


def test_a_hanging_receiver_holds_up_nothing_and_gets_nothing_after_the_close():
    inside, release, calls = threading.Event(), threading.Event(), []

    def hang(body, _sequence):
        calls.append(body)
        inside.set()
        release.wait(30)

    progress = reporter(hang, interval=0.01)
    assert inside.wait(10)
    for number in range(1, 11):
        progress.on_step(step(number))
    assert not progress.close(0.05)
    release.set()
    assert progress.close(10)
    assert len(calls) == 1


def test_progress_never_goes_back_after_a_takeover():
    sent = Sent()
    progress = reporter(sent, floor=60, epoch=2)
    [(sequence, first)] = sent.wait_for(1)
    assert first.progress_percent == 60
    progress.on_step(step(5))
    assert progress.latest.progress_percent == 60
    progress.on_step(step(7))
    assert progress.latest.progress_percent == 70
    progress.close(5)
    last, last_sequence = progress.final_body()
    assert last.progress.progress_percent == 100
    assert last_sequence > sequence > 1_000_000


def test_only_a_stored_job_is_at_100_percent_with_nothing_left():
    progress = reporter(Sent())
    progress.on_step(step(10, left=0.0))
    assert progress.latest.progress_percent == 99
    progress.on_stage(StageEvent(stage="exporting", status="started"))
    assert progress.latest.stage == "exporting"
    body, _ = progress.final_body()
    assert (body.progress.progress_percent, body.progress.estimated_seconds) == (100, 0)
    progress.close(5)


def test_the_estimate_counts_down_between_steps(mocker):
    clock = mocker.patch("worker.jobs.progress.time.monotonic", return_value=100.0)
    progress = reporter(Sent())
    progress.on_step(step(1, left=60.0))
    clock.return_value = 125.0
    assert progress.latest.estimated_seconds == 35
    clock.return_value = 500.0
    assert progress.latest.estimated_seconds == 0
    progress.close(5)


def test_a_receiver_that_fails_costs_a_report_and_nothing_else():
    calls = threading.Event()

    def fail(_body, sequence):
        if sequence % 10 >= 2:
            calls.set()
        raise OSError("gone")

    progress = reporter(fail, interval=0.01)
    assert calls.wait(10)
    assert progress.close(5)
