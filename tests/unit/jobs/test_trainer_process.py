"""A trainer is a child: whatever happens to it costs one attempt, and it is replaced."""

import os
import signal
import sys
import threading

import pytest

from tests import standin_trainer as standin
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import FinishedEvent, StepEvent, StopCommand, StoppedEvent, TrainCommand
from worker.jobs import conversation
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerDied, TrainerProcess
from worker.jobs.trainer_slot import TrainerSlot

#: A trainer that reads the beginning of its input and then stands still.
STILL = """
import sys, time
from worker.contract.pipe import ReadyEvent
ready = ReadyEvent(
    pid=1, device="cpu", device_name="CPU", device_memory_bytes=0, versions={}, slots=4
)
sys.stdout.buffer.write(ready.line())
sys.stdout.flush()
sys.stdin.buffer.raw.read(200)
time.sleep(3600)
"""

STANDIN = (sys.executable, "-m", "tests.standin_trainer")


@pytest.fixture
def slot(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    slot = TrainerSlot(
        share=Share(None), allow_hub=False, max_jobs=2, start_timeout_seconds=30, command=STANDIN
    )
    yield slot
    slot.kill()


def order(tmp_path, style_id=1, steps=3, job_id="j", **fields):
    return TrainCommand(
        job_id=job_id,
        style_id=style_id,
        parameters={"max_train_steps": steps},
        seed=1,
        base_model={"name": "tiny", "location": "/x"},
        images=[],
        output_dir=str(tmp_path),
        checkpoint_dir=str(tmp_path),
        **fields,
    )


def train(slot, command, *, should_stop=lambda: None, limit=60.0):
    events = []
    ended = slot.trainer().train(
        command, events.append, should_stop=should_stop, time_limit_seconds=limit
    )
    return ended, events


def test_a_job_is_trained_and_its_steps_are_heard(slot, tmp_path):
    ended, events = train(slot, order(tmp_path))
    assert isinstance(ended, FinishedEvent)
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3]


def test_a_trainer_stays_warm_until_it_has_served_its_jobs(slot, tmp_path):
    pids = []
    for number in range(3):
        train(slot, order(tmp_path, job_id=f"j{number}"))
        pids.append(slot.trainer().pid)
        slot.recycle()
    assert pids[0] == pids[1] != pids[2]


@pytest.mark.parametrize(
    ("style", "says"),
    [(standin.CRASHES, "exit status 3"), (standin.SEGFAULTS, "signal SIGSEGV")],
)
def test_a_child_that_ends_costs_one_attempt_and_is_replaced(slot, tmp_path, style, says):
    with pytest.raises(TrainerDied, match=says) as caught:
        train(slot, order(tmp_path, style_id=style))
    assert caught.value.code is ErrorCode.WORKER_CRASHED
    assert caught.value.transient
    slot.recycle()
    assert isinstance(train(slot, order(tmp_path))[0], FinishedEvent)


def test_an_error_of_the_trainer_keeps_its_code_and_its_sentence(slot, tmp_path):
    with pytest.raises(JobError, match="needs 9 GiB") as caught:
        train(slot, order(tmp_path, style_id=standin.OUT_OF_MEMORY))
    assert caught.value.code is ErrorCode.GPU_OUT_OF_MEMORY
    used = slot.trainer().pid
    slot.recycle()
    assert slot.trainer().pid != used


def test_prints_of_libraries_do_not_break_the_pipe(slot, tmp_path):
    assert isinstance(train(slot, order(tmp_path, style_id=standin.NOISY))[0], FinishedEvent)


def test_a_drain_leaves_a_checkpoint_from_which_the_next_trainer_goes_on(slot, tmp_path):
    seen = []

    def stop_after_five():
        return StopCommand(reason="drain") if len(seen) >= 5 else None

    ended = slot.trainer().train(
        order(tmp_path, steps=1000),
        seen.append,
        should_stop=stop_after_five,
        time_limit_seconds=60,
    )
    assert isinstance(ended, StoppedEvent)
    assert ended.step > 0
    slot.recycle()
    again, events = train(slot, order(tmp_path, steps=ended.step + 2, resume_from=ended.checkpoint))
    assert isinstance(again, FinishedEvent)
    assert [e.step for e in events if isinstance(e, StepEvent)] == [ended.step + 1, ended.step + 2]


def test_a_job_that_is_to_stop_does_not_wait_until_its_trainer_has_started(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    slow = (sys.executable, "-c", "import time; time.sleep(3600)")
    slot = TrainerSlot(
        share=Share(None), allow_hub=False, max_jobs=2, start_timeout_seconds=3600, command=slow
    )
    told = threading.Event()
    threading.Timer(0.5, told.set).start()
    try:
        ended = slot.train(
            order(tmp_path),
            lambda event: None,
            should_stop=lambda: StopCommand(reason="drain") if told.is_set() else None,
            time_limit_seconds=60,
        )
    finally:
        slot.kill()
    assert ended == StoppedEvent(job_id="j", reason="drain", step=0)


def test_a_job_over_its_time_limit_is_stopped(slot, tmp_path):
    ended, _ = train(slot, order(tmp_path, steps=50_000), limit=0.3)
    assert ended == StoppedEvent(job_id="j", reason="time_limit", step=ended.step)


def test_a_trainer_that_does_not_stop_when_told_to_is_killed(slot, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.jobs.conversation.STOP_SECONDS", 0.5)
    with pytest.raises(TrainerDied, match="did not stop"):
        train(
            slot,
            order(tmp_path, style_id=standin.HANGS),
            should_stop=lambda: StopCommand(reason="cancel"),
        )


def test_a_trainer_that_makes_no_step_any_more_is_killed(tmp_path):
    trainer = TrainerProcess(dict(os.environ), command=STANDIN, stuck_after_seconds=0.5)
    trainer.wait_ready(30)
    with pytest.raises(TrainerDied, match="it made no step for"):
        trainer.train(
            order(tmp_path, style_id=standin.HANGS_LATER, steps=10),
            lambda event: None,
            should_stop=lambda: None,
            time_limit_seconds=60,
        )
    assert not trainer.alive


def test_a_trainer_that_never_becomes_ready_is_given_up():
    trainer = TrainerProcess(
        dict(os.environ), command=(sys.executable, "-c", "import time; time.sleep(60)")
    )
    with pytest.raises(TrainerDied):
        trainer.wait_ready(0.5)
    assert not trainer.alive


def test_a_trainer_killed_from_outside_is_noticed(slot, tmp_path):
    def kill():
        os.kill(slot.trainer().pid, signal.SIGKILL)

    with pytest.raises(TrainerDied, match="SIGKILL"):
        train(slot, order(tmp_path, steps=50_000), should_stop=kill)


def test_a_long_command_that_nobody_reads_does_not_stop_another_jobs_clock(tmp_path, mocker):
    mocker.patch.object(conversation, "STOP_SECONDS", 0.5)
    trainer = TrainerProcess(dict(os.environ), command=(sys.executable, "-c", STILL))
    trainer.wait_ready(60)
    ends = {}

    def train(name, **fields):
        with pytest.raises(TrainerDied) as caught:
            trainer.train(
                order(tmp_path, job_id=name, **fields),
                print,
                should_stop=lambda: None,
                time_limit_seconds=1,
            )
        ends[name] = caught.value

    jobs = [
        threading.Thread(target=train, args=("first",), daemon=True),
        threading.Thread(
            target=train, args=("long",), kwargs={"trigger_word": "x" * 300_000}, daemon=True
        ),
    ]
    try:
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(30)
        assert ends.keys() == {"first", "long"}
    finally:
        trainer.kill()
