"""Kind 3: the broker dies, throws everybody out, takes no messages, forgets queues, loses patience.

Each case has a private node of its own, or the one broker that was given, alone.
"""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

import pika

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.scene import Lab, Scene, scene, wait
from tests.live_worker import LiveWorker, eventually
from worker.demo.rabbitmq_node import RabbitMQNode

_KIND = "broker"

QueueType = Literal["classic", "quorum"]

#: The broker's patience with a delivery that nobody acknowledges, seconds, and a longer job's.
ACK_TIMEOUT_SECONDS, LONG_JOB_STEPS = 8, 200

#: Confirmed messages of a quorum queue may be lost by a kill so soon after its declaration.
SETTLED_SECONDS = 5.0


class Broker(Protocol):
    """A broker that can be harmed."""

    url: str

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl`."""

    def kill(self) -> None:
        """End it at once."""

    def start(self) -> None:
        """Start it again, with what it had."""


class GivenBroker:
    """A broker that somebody else has started, reached by commands of the environment.

    `BROKER_CTL` is followed by rabbitmqctl's arguments; `BROKER_START` starts it again.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ctl(self, *args: str) -> str:
        command = [*shlex.split(os.environ["BROKER_CTL"]), "-q", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def kill(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ctl("eval", "erlang:halt(137, [{flush, false}]).")

    def start(self) -> None:
        subprocess.run(shlex.split(os.environ["BROKER_START"]), check=True, capture_output=True)
        eventually(self._reachable, "the broker is up", 60)

    def _reachable(self) -> bool:
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
            return True
        return False


def cases(given_url: str | None) -> Iterator[Case]:
    plays = {
        "killed and started again": _killed,
        "closes all connections, again and again": _closes_connections,
        "memory alarm while a job ends": _alarm,
        "main queue deleted under a job": _queue_deleted,
        "our queues deleted under a job": _own_queues_deleted,
        "ack time-out under a longer job": _ack_timeout,
        "handed over before the ack time-out": _handed_over,
    }
    for name, play in plays.items():
        for queue_type in ("classic", "quorum"):
            yield Case(
                _KIND,
                f"{name}, {queue_type}",
                partial(play, given_url=given_url, queue_type=queue_type),
                alone=given_url is not None,
                heavy=given_url is None,
            )


@contextlib.contextmanager
def _stage(
    lab: Lab, given_url: str | None, queue_type: QueueType, **settings: str
) -> Iterator[tuple[Broker, Scene]]:
    """A broker of this case's own, and a scene on it whose queues are of that type."""
    with contextlib.ExitStack() as stack:
        broker: Broker
        if given_url is not None:
            broker = GivenBroker(given_url)
        else:
            folder = lab.folder / f"rabbitmq-{time.monotonic_ns()}"
            broker = stack.enter_context(RabbitMQNode(folder))
        played = stack.enter_context(
            scene(
                replace(lab, broker_url=broker.url, login=None),
                RABBITMQ_QUEUE_TYPE=queue_type,
                **settings,
            )
        )
        played.site.queue_type = queue_type
        played.site.declare_queue()  # before any worker, which would declare it without arguments
        yield broker, played


def _killed(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    """One job in training, one waiting, one with an event under way."""
    with _stage(lab, given_url, queue_type, STEP_SECONDS="0.1") as (broker, played):
        worker = played.start()
        worker.wait_for_log("broker_connected", count=3)
        wait(SETTLED_SECONDS)
        played.publish(parameters={"max_train_steps": 3})
        worker.wait_for_log("job_committed")
        played.publish(parameters={"max_train_steps": 80})
        worker.wait_for_log("job_taken_up", count=2)
        played.publish()
        played.start()
        broker.kill()
        wait(1)
        broker.start()
        played.wait_for_ends()
        return _completed(played, 3)


def _closes_connections(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    with _stage(lab, given_url, queue_type, STEP_SECONDS="0.1") as (broker, played):
        played.start()
        played.start()
        for _ in range(4):
            played.publish(parameters={"max_train_steps": 25})
        for _ in range(5):
            wait(0.7)
            broker.ctl("close_all_connections", "--global", "on purpose")
        played.wait_for_ends()
        return _completed(played, 4)


def _alarm(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    """Acknowledgements go on; publishing waits until the alarm is over."""
    with _stage(lab, given_url, queue_type) as (broker, played):
        worker = played.start()
        played.publish(parameters={"max_train_steps": 60})
        worker.wait_for_log("job_taken_up")
        broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            worker.wait_for_log("job_committed")
            wait(3)
        finally:
            broker.ctl("set_vm_memory_high_watermark", "0.4")
        played.publish()
        played.wait_for_ends()
        return _completed(played, 2)


def _queue_deleted(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    """The message that is being worked on is gone from the broker; the job is not."""
    with _stage(lab, given_url, queue_type, STEP_SECONDS="0.1") as (_, played):
        worker = played.start()
        played.publish(parameters={"max_train_steps": 30})
        worker.wait_for_log("job_taken_up")
        _delete(played, played.site.queue)
        played.site.queue_type = "classic"  # as the worker declares it anew, where nothing is set
        wait(1)
        played.publish()
        played.wait_for_ends()
        return _completed(played, 2)


def _own_queues_deleted(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    """Empty queues of ours vanish; they are declared again when they are missed."""
    with _stage(lab, given_url, queue_type, STEP_SECONDS="0.1") as (_, played):
        worker = played.start(HANDOVER_AFTER_SECONDS="1")
        played.publish(parameters={"max_train_steps": 30})
        worker.wait_for_log("job_taken_up")
        name = played.site.queue
        _delete(played, f"{name}.parked", f"{name}.events", f"{name}.retry.300ms", f"{name}.dead")
        wait(1)
        played.publish()
        played.wait_for_ends()
        return _completed(played, 2)


def _ack_timeout(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    """Nothing is handed over, so the broker takes the message back and delivers it again."""
    with _impatient(lab, given_url, queue_type, HANDOVER_AFTER_SECONDS="1200") as played:
        first = _long_job(played)
        played.wait_for_ends()
        counts = _completed(played, 1)
        taken_back = first.log("broker_channel_lost")
        # From 4.3 on classic queues know no such time-out.
        expect(counts, taken_back or queue_type == "classic", "the broker took nothing back")
        return counts


def _handed_over(lab: Lab, given_url: str | None, queue_type: QueueType) -> Counts:
    with _impatient(lab, given_url, queue_type, HANDOVER_AFTER_SECONDS="4") as played:
        first = _long_job(played)
        played.wait_for_ends()
        counts = _completed(played, 1)
        expect(counts, first.log("delivery_handed_over"), "the delivery was not handed over")
        expect(counts, not first.log("broker_channel_lost"), "the broker took it back")
        return counts


@contextlib.contextmanager
def _impatient(
    lab: Lab, given_url: str | None, queue_type: QueueType, **settings: str
) -> Iterator[Scene]:
    with _stage(lab, given_url, queue_type, STEP_SECONDS="0.1", **settings) as (broker, played):
        _set_patience(broker, ACK_TIMEOUT_SECONDS * 1000, 1000)
        try:
            yield played
        finally:
            _set_patience(broker, 1_800_000, 60_000)


def _set_patience(broker: Broker, timeout: int, tick: int) -> None:
    """Milliseconds; holds for channels that are opened from now on."""
    broker.ctl(
        "eval",
        f"application:set_env(rabbit, consumer_timeout, {timeout}), "
        f"application:set_env(rabbit, channel_tick_interval, {tick}).",
    )


def _long_job(played: Scene) -> LiveWorker:
    """A job of 20 seconds on one worker, and another worker that waits for work."""
    first = played.start()
    played.publish(parameters={"max_train_steps": LONG_JOB_STEPS})
    first.wait_for_log("job_taken_up")
    played.start()
    return first


def _completed(played: Scene, jobs: int) -> Counts:
    counts = played.finish()
    expect(counts, counts.committed == jobs, f"{counts.committed} of {jobs} jobs are completed")
    return counts


def _delete(played: Scene, *queues: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(played.site.broker_url))
    for queue in queues:
        connection.channel().queue_delete(queue)
    connection.close()
