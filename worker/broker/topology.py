"""Which queues are there, and how is each declared? The table of the broker, as data.

Everything but the control exchange is on the default exchange, where a queue's name is its
routing key, so that plain publishers keep working.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pika.exceptions
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

log = structlog.get_logger()

#: Delays before a job that failed for a passing reason is tried again, seconds.
JOB_RETRY_SECONDS = (30.0, 120.0, 600.0, 3600.0)

#: Delays before a terminal webhook is tried again, seconds; the last one serves many times over.
EVENT_RETRY_SECONDS = (30.0, 120.0, 600.0, 3600.0, 6 * 3600.0)

#: AMQP reply codes: no such queue; declared before with other arguments.
_NOT_FOUND, _PRECONDITION_FAILED = 404, 406

Arguments = Mapping[str, str | int]


@dataclass(frozen=True)
class QueueSpec:
    """A queue that is ours to declare: durable, with these arguments."""

    name: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """The broker's table, derived from the name of the main queue.

    Attributes:
        queue: the queue that backends publish to. Never declared with arguments: the backends'
            own plain declare would fail then.
        queue_type: type of the queues beside it.
        parked_seconds: how long a parked message lies before it comes back through `resume`.
        dead_max_messages: bound of the dead-letter queues; beyond it the publisher is refused.
        job_retry_seconds, events_retry_seconds: the ladders, one queue a delay, because the
            time-to-live of a single message is looked at only at the head of a queue.
    """

    queue: str = "model_training"
    queue_type: Literal["classic", "quorum"] = "classic"
    parked_seconds: float = 60.0
    dead_max_messages: int = 10_000
    job_retry_seconds: tuple[float, ...] = JOB_RETRY_SECONDS
    events_retry_seconds: tuple[float, ...] = EVENT_RETRY_SECONDS

    @property
    def main(self) -> str:
        """Jobs, from the backends."""
        return self.queue

    @property
    def resume(self) -> str:
        """Jobs that were parked or wait for another try; taken before those of `main`."""
        return f"{self.queue}.resume"

    @property
    def parked(self) -> str:
        """Messages of jobs that run somewhere: back through `resume` after `parked_seconds`."""
        return f"{self.queue}.parked"

    @property
    def dead(self) -> str:
        """Jobs that nobody will try again, with the reason in their headers."""
        return f"{self.queue}.dead"

    @property
    def events(self) -> str:
        """Terminal webhooks on their way."""
        return f"{self.queue}.events"

    @property
    def events_dead(self) -> str:
        """Terminal webhooks that no receiver took."""
        return f"{self.queue}.events.dead"

    @property
    def control(self) -> str:
        """A fanout exchange that every worker hears."""
        return f"{self.queue}.control"

    def control_queue(self, worker_id: str) -> str:
        """A worker's own ear on `control`."""
        return f"{self.control}.{worker_id}"

    @property
    def job_retries(self) -> dict[float, str]:
        """Queue of each delay in seconds, shortest first; all return through `resume`."""
        return {s: f"{self.queue}.retry.{spell(s)}" for s in sorted(self.job_retry_seconds)}

    @property
    def events_retries(self) -> dict[float, str]:
        """Queue of each delay in seconds, shortest first; all return to `events`."""
        return {s: f"{self.events}.retry.{spell(s)}" for s in sorted(self.events_retry_seconds)}

    def retry_for_attempt(self, attempt: int) -> str:
        """Where a job waits after its attempt number `attempt`, from 1; the last rung repeats."""
        rungs = list(self.job_retries.values())
        return rungs[min(max(attempt, 1), len(rungs)) - 1]

    def events_retry_for(self, delay_seconds: float) -> str:
        """The rung that waits at least `delay_seconds`, or the longest."""
        rungs = self.events_retries
        return next((name for s, name in rungs.items() if s >= delay_seconds), rungs[max(rungs)])

    @property
    def own_queues(self) -> tuple[QueueSpec, ...]:
        """Every queue that is ours to declare."""
        return (
            self._working(self.resume, dead_letter_to=self.dead),
            self._delaying(self.parked, self.parked_seconds, self.resume),
            *(self._delaying(n, s, self.resume) for s, n in self.job_retries.items()),
            self._bounded(self.dead),
            self._working(self.events, dead_letter_to=self.events_dead),
            *(self._delaying(n, s, self.events) for s, n in self.events_retries.items()),
            self._bounded(self.events_dead),
        )

    def declare(self, channel: BlockingChannel) -> None:
        """Declare all of it; see the function of this name."""
        declare(channel, self)

    def _working(self, name: str, *, dead_letter_to: str) -> QueueSpec:
        """A queue that is consumed.

        From RabbitMQ 4.0 on, a quorum queue drops a message after 20 returns unless it has
        somewhere to put it.
        """
        return QueueSpec(name, self._type() | (self._to(dead_letter_to) if self._quorum else {}))

    def _delaying(self, name: str, seconds: float, returns_to: str) -> QueueSpec:
        ttl: dict[str, str | int] = {"x-message-ttl": round(seconds * 1000)}
        return QueueSpec(name, self._type() | ttl | self._to(returns_to))

    def _bounded(self, name: str) -> QueueSpec:
        bound: dict[str, str | int] = {
            "x-max-length": self.dead_max_messages,
            "x-overflow": "reject-publish",
        }
        return QueueSpec(name, self._type() | bound)

    def _to(self, queue: str) -> dict[str, str | int]:
        route: dict[str, str | int] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue,
        }
        if self._quorum:
            # Otherwise a message is lost if the node dies between the two queues.
            route |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        return route

    def _type(self) -> dict[str, str | int]:
        # Said always: the virtual host may have another default.
        return {"x-queue-type": self.queue_type}

    @property
    def _quorum(self) -> bool:
        return self.queue_type == "quorum"


def spell(seconds: float) -> str:
    """A delay as a queue's name says it: 30s, 2m, 1h."""
    for unit, name in ((3600, "h"), (60, "m"), (1, "s")):
        if seconds >= unit and seconds % unit == 0:
            return f"{round(seconds) // unit}{name}"
    return f"{round(seconds * 1000)}ms"


def declare(channel: BlockingChannel, topology: Topology) -> None:
    """Declare every queue and the control exchange; what exists otherwise is adopted as found.

    The main queue gets no arguments and whatever it is (quorum by policy, limits, …) stays. A
    queue of ours that exists with other arguments is used as it is, and named in one warning.
    Works on channels of its own, so `channel` itself stays open.

    Raises:
        pika.exceptions.AMQPError: the broker refuses for another reason, or is gone.
    """
    declaration = _Declaration(channel.connection)
    try:
        if not declaration.exists(topology.main):
            declaration.declare_or_adopt(QueueSpec(topology.main))
        specs = topology.own_queues
        adopted = [spec.name for spec in specs if not declaration.declare_or_adopt(spec)]
        declaration.channel.exchange_declare(topology.control, "fanout", durable=True)
    finally:
        declaration.close()
    if adopted:
        log.warning(
            "queues_adopted_as_found",
            queues=adopted,
            advice="they exist with other arguments than the settings ask for; drain and delete "
            "them to have them declared anew",
        )


def declare_control_queue(channel: BlockingChannel, topology: Topology, worker_id: str) -> str:
    """Declare this connection's own queue on the control exchange; returns its name.

    It is exclusive: it ends with the connection, and is declared anew on the next.
    """
    name = topology.control_queue(worker_id)
    channel.exchange_declare(topology.control, "fanout", durable=True)
    channel.queue_declare(name, exclusive=True, arguments={"x-queue-type": "classic"})
    channel.queue_bind(name, topology.control)
    return name


class _Declaration:
    """A channel that is opened anew whenever the broker has closed it over a refused declare."""

    def __init__(self, connection: BlockingConnection) -> None:
        self._connection = connection
        self._channel: BlockingChannel | None = None

    @property
    def channel(self) -> BlockingChannel:
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        return self._channel

    def exists(self, name: str) -> bool:
        try:
            self.channel.queue_declare(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != _NOT_FOUND:
                raise
            return False
        return True

    def declare_or_adopt(self, spec: QueueSpec) -> bool:
        """True if the queue is as `spec` says; False if it exists otherwise."""
        try:
            self.channel.queue_declare(spec.name, durable=True, arguments=dict(spec.arguments))
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != _PRECONDITION_FAILED or not self.exists(spec.name):
                raise
            return False
        return True

    def close(self) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
