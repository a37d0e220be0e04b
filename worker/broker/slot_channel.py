"""One slot's channel: takes one message, holds it until it is settled, then looks for the next.

Lives on the consumer's thread alone. A slot that looks for work asks the earlier queues first
and then listens to all of them; once it has a message it listens to none, so that settling the
message early does not bring another one.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import pika.exceptions
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.spec import Basic, BasicProperties

from worker.broker.connection import Backoff, why
from worker.broker.delivery import Delivery
from worker.observability import metrics

log = structlog.get_logger()

#: How a delivery ends.
Settlement = Literal["ack", "requeue"]

#: A channel that has lived so long was not lost in a row with the one before, seconds.
_STEADY_SECONDS = 30.0


class _Arrival(NamedTuple):
    """A message as it came, not yet accepted."""

    queue: str
    method: Basic.Deliver | Basic.GetOk
    properties: BasicProperties
    body: bytes | None


class SlotChannel:
    """The broker's side of one slot.

    Attributes:
        index: the slot's number.
        busy: the slot works, whatever became of its message; only `free` ends that.
        generation: of the channel that is open; 0 while there is none.
    """

    #: Generations are counted over all slots of a process: no two channels share one.
    _generations = itertools.count(1)

    def __init__(
        self,
        index: int,
        *,
        queues: Sequence[str],
        name: str,
        on_delivery: Callable[[Delivery], None],
        declare_again: Callable[[BlockingConnection], None],
    ) -> None:
        self.index, self.busy, self.generation = index, False, 0
        self._queues, self._name, self._on_delivery = tuple(queues), name, on_delivery
        self._declare_again, self._must_declare = declare_again, False
        self._channel: BlockingChannel | None = None
        self._listening: list[str] = []
        self._arrived: list[_Arrival] = []
        self._held_tag: int | None = None
        self._lost_because: str | None = None
        self._opened_at = 0.0
        self._tags = itertools.count(1)
        self._backoff = Backoff()
        self._open_again_at = 0.0

    # --- what the consumer's loop calls

    def tend(self, connection: BlockingConnection, *, priority: int | None) -> None:
        """One round: see whether the channel lives, take what arrived, look for work.

        A channel that died is left behind here, and another opened after a short wait.

        Args:
            connection: the one that stands.
            priority: at which the slot begins to listen if it is free; None: it takes nothing.
        """
        try:
            self._check()
            if self.busy:
                return
            if priority is None:
                self._rest()
            elif self._channel is not None or time.monotonic() >= self._open_again_at:
                self._seek(self._channel or self._open(connection), priority)
        except pika.exceptions.AMQPChannelError as error:
            self._lose(why(error))

    def settle(self, delivery: Delivery, how: Settlement) -> bool:
        """Write the answer to the broker; False, and nothing written, if it is too late for it."""
        if delivery.generation != self.generation or delivery.delivery_tag != self._held_tag:
            return False
        try:
            self._check()
            if self._channel is None:
                return False
            self._held_tag = None
            if how == "ack":
                self._channel.basic_ack(delivery.delivery_tag)
            else:
                self._channel.basic_nack(delivery.delivery_tag, requeue=True)
        except pika.exceptions.AMQPChannelError as error:
            self._lose(why(error))
            return False
        return True

    def free(self) -> None:
        """The slot takes its next message in the next round."""
        if self._held_tag is not None and self._channel is not None:
            log.warning("delivery_left_unsettled", consumer=self._name, slot=self.index)
            try:
                self._channel.basic_nack(self._held_tag, requeue=True)
            except pika.exceptions.AMQPChannelError as error:
                self._lose(why(error))
        self._held_tag = None
        self.busy = False

    def forget(self) -> bool:
        """The connection is gone: what is held is stale. True if something was held."""
        held = self._held_tag is not None
        self.generation, self._channel, self._held_tag = 0, None, None
        self._listening, self._arrived, self._lost_because = [], [], None
        self._must_declare = False
        return held

    # --- the channel

    def _open(self, connection: BlockingConnection) -> BlockingChannel:
        if self._must_declare:
            self._declare_again(connection)
            self._must_declare = False
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.add_on_cancel_callback(self._on_canceled_by_broker)
        self._channel, self.generation = channel, next(self._generations)
        self._opened_at = time.monotonic()
        return channel

    def _check(self) -> None:
        """A channel may die alone, and the broker may stop a consumer: neither raises."""
        if self._channel is None:
            return
        if not self._channel.is_open:
            # The library keeps the broker's words, and shows them only to those who fail on it.
            reason = getattr(self._channel, "_closing_reason", None)
            self._lose(why(reason) if reason is not None else "closed by the broker")
        elif self._lost_because is not None:
            self._lose(self._lost_because)

    def _lose(self, reason: str) -> None:
        """Leave this channel; anything unsettled on it goes back to its queue."""
        channel, opened_at = self._channel, self._opened_at
        held = self.forget()
        metrics.CHANNEL_LOSSES.labels(self._name).inc()
        log.warning(
            "broker_channel_lost", consumer=self._name, slot=self.index, held=held, reason=reason
        )
        if time.monotonic() - opened_at > _STEADY_SECONDS:
            self._backoff.reset()
        self._open_again_at = time.monotonic() + self._backoff.next_seconds()
        # A queue that was deleted is a usual reason.
        self._must_declare = True
        if channel is not None and channel.is_open:
            with contextlib.suppress(pika.exceptions.AMQPChannelError):
                channel.close()

    def _on_canceled_by_broker(self, frame: object) -> None:
        self._lost_because = "consumer canceled by the broker"

    # --- messages

    def _seek(self, channel: BlockingChannel, priority: int) -> None:
        if not self._arrived and not self._listening:
            for queue in self._queues[:-1]:
                method, properties, body = channel.basic_get(queue)
                if method is not None and properties is not None:
                    self._arrived.append(_Arrival(queue, method, properties, body))
                    break
            else:
                self._listen(channel, priority)
        if self._arrived:
            self._accept(channel)

    def _listen(self, channel: BlockingChannel, priority: int) -> None:
        """Listen to all queues.

        The priority stays until a message has come: canceling a consumer gives back what is on
        its way, and marks it as redelivered.
        """
        for queue in self._queues:

            def arrived(
                _channel: BlockingChannel,
                method: Basic.Deliver,
                properties: BasicProperties,
                body: bytes,
                queue: str = queue,
            ) -> None:
                self._arrived.append(_Arrival(queue, method, properties, body))

            # A tag is used once: brokers remember canceled consumers that still hold a message.
            tag = f"{self._name}.{self.index}.{self.generation}.{next(self._tags)}"
            self._listening.append(tag)
            arguments = {"x-priority": priority} if priority else None
            channel.basic_consume(queue, arrived, consumer_tag=tag, arguments=arguments)

    def _accept(self, channel: BlockingChannel) -> None:
        """Keep the arrival of the earliest queue and give the others back."""
        self._deafen(channel)
        first = min(self._arrived, key=lambda arrival: self._queues.index(arrival.queue))
        others = [arrival for arrival in self._arrived if arrival is not first]
        self._arrived = []
        for arrival in others:
            channel.basic_nack(arrival.method.delivery_tag, requeue=True)
        self._held_tag, self.busy = first.method.delivery_tag, True
        self._on_delivery(
            Delivery(
                slot=self.index,
                generation=self.generation,
                delivery_tag=first.method.delivery_tag,
                queue=first.queue,
                body=first.body or b"",
                message_id=first.properties.message_id,
                headers=first.properties.headers or {},
                redelivered=bool(first.method.redelivered),
                content_type=first.properties.content_type,
                received_at=time.monotonic(),
                timestamp=first.properties.timestamp,
            )
        )

    def _rest(self) -> None:
        """Listen no more, and give back what arrived meanwhile."""
        if self._channel is None:
            return
        self._deafen(self._channel)
        arrived, self._arrived = self._arrived, []
        for arrival in arrived:
            self._channel.basic_nack(arrival.method.delivery_tag, requeue=True)

    def _deafen(self, channel: BlockingChannel) -> None:
        """Cancel the consumers first, so that what is given back does not return at once."""
        listening, self._listening = self._listening, []
        for tag in listening:
            channel.basic_cancel(tag)
