"""A trainer with several slots, over the real pipe: whose event is whose, and who is stopped."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.unit.training.builders import command, digests, run
from worker.contract.errors import ErrorCode
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    ReadyEvent,
    StepEvent,
    StopCommand,
    StoppedEvent,
    parse_event,
)

#: How long something may take on a busy machine, seconds.
_PATIENCE_SECONDS = 240.0

_ENDS = (FinishedEvent, StoppedEvent, FailedEvent)


class Trainer:
    """The process, its events in the order in which they came."""

    def __init__(self, *arguments: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "worker.training", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.events: list = []
        self._queue: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            self._queue.put(parse_event(line))

    def send(self, *commands):
        for one in commands:
            self.child.stdin.write(one.line())
        self.child.stdin.flush()

    def until(self, done):
        """Read events until one of them is what `done` says; returns it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            event = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            self.events.append(event)
            if done(event):
                return event

    def ends_of(self, count):
        """The terminal events of so many jobs, by job."""
        ends = {}
        while len(ends) < count:
            event = self.until(lambda event: isinstance(event, _ENDS))
            ends[event.job_id] = event
        return ends


@pytest.fixture
def trainer():
    process = Trainer("--slots", "3")
    ready = process.until(lambda event: isinstance(event, ReadyEvent))
    assert ready.slots == 3
    yield process
    process.child.kill()
    process.child.wait()


def order(tiny_base_model, pictures, folder, name, **rules):
    return command(tiny_base_model, pictures[:3], folder / name, job_id=name, **rules)


def training(job_id):
    return lambda event: isinstance(event, StepEvent) and event.job_id == job_id


def test_three_jobs_at_a_time_of_which_one_is_stopped_and_one_fails_and_one_takes_its_turn(
    trainer, tiny_base_model, pictures, tmp_path
):
    def make(name, **rules):
        return order(tiny_base_model, pictures, tmp_path, name, **rules)

    long = {"max_train_steps": 50_000, "lr_scheduler": "linear"}
    trainer.send(make("canceled", **long), make("goes-on", **long))
    trainer.until(training("canceled"))
    trainer.until(training("goes-on"))
    # A third one joins two that train; a fourth one is one too many.
    trainer.send(make("fails", target_modules=["nothing"]), make("too-many"))
    refused = trainer.until(lambda event: event.job_id == "too-many")
    assert isinstance(refused, LogEvent)
    assert refused.event == "command_while_busy"
    trainer.send(StopCommand(reason="cancel", job_id="canceled"))
    ends = trainer.ends_of(1)
    # It names other layers, so it waits for those who train.
    assert ends.keys() == {"canceled"}
    assert (ends["canceled"].reason, ends["canceled"].checkpoint) == ("cancel", None)
    trainer.send(make("short", max_train_steps=4, lora_dropout=0.1))
    trainer.send(StopCommand(reason="time_limit", job_id="nobody"))
    trainer.until(training("goes-on"))
    trainer.send(StopCommand(reason="time_limit", job_id="goes-on"))
    ends = trainer.ends_of(3)
    assert ends["goes-on"].reason == "time_limit"
    assert ends["fails"].code is ErrorCode.INVALID_JOB
    alone, _ = run(make("short", max_train_steps=4, lora_dropout=0.1))
    assert isinstance(ends["short"], FinishedEvent)
    assert ends["short"].metadata["packing"]["slots"] == 3
    assert digests(ends["short"]).keys() == digests(alone).keys()
    assert {event.job_id for event in trainer.events[1:]} == {
        *("canceled", "goes-on", "fails", "too-many", "short"),
    }
    trainer.child.stdin.close()
    assert trainer.child.wait(_PATIENCE_SECONDS) == 0


def test_sigterm_with_several_jobs_leaves_a_checkpoint_of_each(
    trainer, tiny_base_model, pictures, tmp_path
):
    names = ("a", "b", "c")
    for place, name in enumerate(names):
        rules = {"max_train_steps": 50_000, "rank": 4 + place}
        trainer.send(order(tiny_base_model, pictures, tmp_path, name, **rules))
    for name in names:
        trainer.until(training(name))
    os.kill(trainer.child.pid, signal.SIGTERM)
    ends = trainer.ends_of(3)
    for name in names:
        assert isinstance(ends[name], StoppedEvent)
        assert (ends[name].reason, ends[name].step > 0) == ("drain", True)
        assert Path(ends[name].checkpoint).exists()
    assert trainer.child.wait(_PATIENCE_SECONDS) == EXIT_CHECKPOINTED
