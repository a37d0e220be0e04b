"""What lies in a queue, for a person: look without taking, move some, throw away."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions

from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress, why

#: Most messages that are looked at in one go.
MAX_MESSAGES = 1000


@dataclass(frozen=True)
class QueuedMessage:
    """A message as it lies in a queue."""

    body: bytes = field(repr=False)
    message_id: str | None
    headers: Mapping[str, Any]


def look_at(address: BrokerAddress, queue: str, limit: int = MAX_MESSAGES) -> list[QueuedMessage]:
    """The first messages of a queue; all go back to their places.

    Raises:
        PublishFailed: the broker cannot be reached, or there is no such queue.
    """
    with _channel(address, queue) as channel:
        return [message for _, message in _take(channel, queue, limit)]


def move(
    address: BrokerAddress,
    queue: str,
    target: str,
    replaced: Callable[[QueuedMessage], QueuedMessage | None],
    limit: int = MAX_MESSAGES,
) -> int:
    """Publish what `replaced` makes of a message to `target`, then take the message off `queue`.

    Messages of which it makes None stay. Returns how many were moved.

    Raises:
        PublishFailed: the broker did not take one; what was moved before stays moved.
    """
    moved = 0
    with _channel(address, queue) as channel:
        channel.confirm_delivery()
        for tag, message in _take(channel, queue, limit):
            copy = replaced(message)
            if copy is None:
                continue
            properties = pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                message_id=copy.message_id,
                headers=dict(copy.headers),
            )
            channel.basic_publish("", target, copy.body, properties, mandatory=True)
            channel.basic_ack(tag)
            moved += 1
    return moved


def purge(address: BrokerAddress, queue: str) -> int:
    """Throw away all messages of a queue; how many there were. Raises `PublishFailed`."""
    with _channel(address, queue) as channel:
        return int(channel.queue_purge(queue).method.message_count)


@contextmanager
def _channel(address: BrokerAddress, queue: str) -> Iterator[Any]:
    """A channel whose end gives back everything that was taken and not acknowledged."""
    try:
        connection = pika.BlockingConnection(address.parameters("inspection"))
        try:
            channel = connection.channel()
            channel.queue_declare(queue, passive=True)
            yield channel
        finally:
            if connection.is_open:
                connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        raise PublishFailed(f"queue {queue!r}: {why(error)}") from None


def _take(channel: Any, queue: str, limit: int) -> list[tuple[int, QueuedMessage]]:
    taken: list[tuple[int, QueuedMessage]] = []
    while len(taken) < limit:
        method, properties, body = channel.basic_get(queue, auto_ack=False)
        if method is None:
            break
        message = QueuedMessage(body, properties.message_id, properties.headers or {})
        taken.append((method.delivery_tag, message))
    return taken
