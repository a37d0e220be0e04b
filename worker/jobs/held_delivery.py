"""The message of a job while the job runs: acknowledged, parked, moved or given back, once."""

import threading
from typing import Protocol

import structlog

from worker.broker.delivery import Delivery
from worker.broker.publisher import Publisher, PublishFailed
from worker.broker.topology import Topology
from worker.observability import metrics

log = structlog.get_logger()

#: How long to wait before a hand-over that the broker refused is tried again, seconds.
_HAND_OVER_AGAIN_SECONDS = 15.0


class Settles(Protocol):
    """The consumer's side of a delivery; False where its channel is gone."""

    def ack(self, delivery: Delivery) -> bool:
        """Acknowledge."""
        ...

    def requeue(self, delivery: Delivery) -> bool:
        """Give back to the queue."""
        ...

    def holds(self, delivery: Delivery) -> bool:
        """Whether nobody else can have it."""
        ...


class HeldDelivery:
    """A delivery that is settled exactly once, whoever comes first.

    A delivery may not be held for ever: brokers take it back after their time-out. After
    `hand_over_after_seconds` it is parked by itself, that is, a copy is published to the parking
    queue and the delivery acknowledged, while the job goes on; the copy comes back as a dead
    man's switch.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        consumer: Settles,
        publisher: Publisher,
        topology: Topology,
        hand_over_after_seconds: float,
    ) -> None:
        self.delivery = delivery
        self.job_id: str | None = delivery.message_id
        self._consumer, self._publisher, self._topology = consumer, publisher, topology
        self._lock = threading.Lock()
        self._settled = False
        self._timer = self._start_timer(hand_over_after_seconds)

    def ack(self) -> None:
        """The message is dealt with."""
        with self._lock:
            if self._settle():
                self._consumer.ack(self.delivery)

    def requeue(self) -> None:
        """Somebody else shall have it, now."""
        with self._lock:
            if self._settle():
                self._consumer.requeue(self.delivery)

    def move(self, queue: str, **headers: str | int) -> None:
        """Publish a copy that carries the job's id, then acknowledge. Raises `PublishFailed`.

        A message that was handed over before has a parked copy already; that one stays the
        job's message, and comes back to find what this call says.
        """
        with self._lock:
            if self._settled:
                return
            self._copy(queue, headers)
            if queue == self._topology.parked:
                metrics.PARKS.inc()
            self._settle()
            self._consumer.ack(self.delivery)

    def copy(self, queue: str, **headers: str | int) -> None:
        """Publish a copy, whatever became of the delivery. Raises `PublishFailed`."""
        self._copy(queue, headers)

    def park(self) -> None:
        """Move to the parking queue. Raises `PublishFailed`."""
        self.move(self._topology.parked)

    def is_lost(self) -> bool:
        """Whether somebody else may have the message: handed over, or its channel is gone."""
        return self._settled or not self._consumer.holds(self.delivery)

    def close(self) -> None:
        """No hand-over any more."""
        self._timer.cancel()

    def _settle(self) -> bool:
        first, self._settled = not self._settled, True
        if first:
            self._timer.cancel()
        return first

    def _copy(self, queue: str, headers: dict[str, str | int]) -> None:
        self._publisher.publish(
            queue,
            self.delivery.body,
            message_id=self.job_id,
            headers={**self.delivery.kept_headers(), **headers},
        )

    def _start_timer(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._hand_over)
        timer.name, timer.daemon = "hand-over", True
        timer.start()
        return timer

    def _hand_over(self) -> None:
        try:
            self.park()
            log.info("delivery_handed_over", job_id=self.job_id)
        except PublishFailed as error:
            log.warning("delivery_not_handed_over", job_id=self.job_id, reason=str(error))
            self._hand_over_later()
        except Exception:
            log.exception("delivery_not_handed_over", job_id=self.job_id)
            self._hand_over_later()

    def _hand_over_later(self) -> None:
        with self._lock:
            if not self._settled:
                self._timer = self._start_timer(_HAND_OVER_AGAIN_SECONDS)
