"""What lies in a queue, for a person: look without taking, move some, throw away."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pika
import pika.exceptions

from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress, why

#: Delivery tag that stands for all that is not acknowledged, where `multiple` is set.
_ALL_TAKEN = 0

#: Most messages that are looked at in one go: ten times the usual bound of a dead-letter queue.
MAX_MESSAGES = 100_000

#: Longest wait until what was taken is back, and time between two looks at that, seconds. Classic
#: queues take ten thousand back within fifteen or so, and whoever looks meanwhile sees a part.
_BACK_WITHIN_SECONDS, _LOOK_SECONDS = 60.0, 0.05

Told = TypeVar("Told")


@dataclass(frozen=True)
class QueuedMessage:
    """A message as it lies in a queue."""

    body: bytes = field(repr=False)
    message_id: str | None
    headers: Mapping[str, Any]


def look_at(
    address: BrokerAddress, queue: str, tell: Callable[[QueuedMessage], Told]
) -> list[Told]:
    """What `tell` makes of each message of a queue; all go back.

    A message is let go of once it is told, so that only what is told must fit into memory.

    Raises:
        PublishFailed: the broker cannot be reached, or there is no such queue.
    """
    with _opened(address, queue) as opened:
        return [tell(message) for _, message in opened.taken()]


def move(
    address: BrokerAddress,
    queue: str,
    target: str,
    replaced: Callable[[QueuedMessage], QueuedMessage | None],
) -> int:
    """Publish what `replaced` makes of a message to `target`, then take the message off `queue`.

    Messages of which it makes None stay. Returns how many were moved.

    Raises:
        PublishFailed: the broker did not take one; what was moved before stays moved.
    """
    moved = 0
    with _opened(address, queue) as opened:
        opened.channel.confirm_delivery()
        for tag, message in opened.taken():
            copy = replaced(message)
            if copy is None:
                continue
            properties = pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                message_id=copy.message_id,
                headers=dict(copy.headers),
            )
            opened.channel.basic_publish("", target, copy.body, properties, mandatory=True)
            opened.take_off(tag)
            moved += 1
    return moved


def purge(address: BrokerAddress, queue: str) -> int:
    """Throw away all messages of a queue; how many there were. Raises `PublishFailed`."""
    with _opened(address, queue) as opened:
        return int(opened.channel.queue_purge(queue).method.message_count)


@dataclass
class _OpenedQueue:
    """A queue that is looked into.

    Attributes:
        held: messages that were taken and not acknowledged.
    """

    channel: Any
    queue: str
    held: int = 0

    def ready(self) -> int:
        """Messages that nobody holds."""
        return int(self.channel.queue_declare(self.queue, passive=True).method.message_count)

    def taken(self) -> Iterator[tuple[int, QueuedMessage]]:
        """What lies in it now, one after another; what comes meanwhile is not among it."""
        for _ in range(min(self.ready(), MAX_MESSAGES)):
            method, properties, body = self.channel.basic_get(self.queue, auto_ack=False)
            if method is None:
                return
            self.held += 1
            yield (
                method.delivery_tag,
                QueuedMessage(body, properties.message_id, properties.headers or {}),
            )

    def take_off(self, tag: int) -> None:
        """Acknowledge one."""
        self.channel.basic_ack(tag)
        self.held -= 1

    def give_back(self) -> None:
        """Everything that is held, with a word, and wait until it is there.

        Quorum queues count each return by a lost channel, and drop a message after so many.
        """
        if not self.held or not self.channel.is_open:
            return
        self.channel.basic_nack(_ALL_TAKEN, multiple=True, requeue=True)
        until = time.monotonic() + _BACK_WITHIN_SECONDS
        while self.ready() < self.held and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _opened(address: BrokerAddress, queue: str) -> Iterator[_OpenedQueue]:
    """A queue that is there, on a connection of its own; what is still held in the end goes back.

    Raises:
        PublishFailed: the broker cannot be reached, is lost, or has no such queue.
    """
    try:
        connection = pika.BlockingConnection(address.parameters("inspection"))
        try:
            opened = _OpenedQueue(connection.channel(), queue)
            opened.ready()
            try:
                yield opened
            finally:
                opened.give_back()
        finally:
            if connection.is_open:
                connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        raise PublishFailed(f"queue {queue!r}: {why(error)}") from None
