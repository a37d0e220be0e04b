"""A message in a worker's hands, and where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message. Its tag means something on its own channel only.

    Attributes:
        slot: which slot of the consumer holds it.
        generation: which opening of that slot's channel it came on; 1 is the first of a process.
        delivery_tag: the broker's number for it on that channel.
        queue: where it came from.
        body: the bytes as published.
        message_id: AMQP's; none if the publisher set none.
        headers: AMQP's; empty if there are none.
        redelivered: the broker has given it to somebody before, and it came back.
        content_type: AMQP's.
        received_at: `time.monotonic()` of its arrival, seconds.
        timestamp: AMQP's, seconds since the epoch; none if the publisher set none.
    """

    slot: int
    generation: int
    delivery_tag: int
    queue: str
    body: bytes = field(repr=False)
    message_id: str | None
    headers: Mapping[str, object] = field(repr=False)
    redelivered: bool
    content_type: str | None
    received_at: float
    timestamp: int | None = None
