"""A message in a worker's hands, and where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pika.spec import BasicProperties

#: Header of a copy of a message that had no id and came back: a copy is not redelivered itself.
CAME_BACK_HEADER = "x-lora-came-back"

#: Most bytes of a message's headers that a copy carries on. All headers of a message must fit into
#: one frame, 128 KiB by default, with those that the copy adds.
MAX_HEADERS_BYTES = 32 * 1024

#: Names of headers by which a broker routes: a copy goes to its own queue, and nowhere else.
_ROUTES = frozenset({"CC", "BCC"})

#: Names of headers that mean something to us, and the most characters that such a one has.
_OURS, _LONGEST = ("x-lora-", "traceparent", "tracestate"), 4096


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

    @property
    def came_back(self) -> bool:
        """Whether somebody had it before: this message, or the one that it is a copy of."""
        return self.redelivered or CAME_BACK_HEADER in self.headers

    def kept_headers(self) -> dict[str, object]:
        """What a copy of the message carries on: all of its headers, or ours where they are huge.

        What the broker says of earlier deaths is not among them: it writes that anew. Nor is what
        would have the copy routed to other queues too. That a message without an id came back is.
        """
        kept = {
            name: value
            for name, value in self.headers.items()
            if not name.startswith("x-death") and name not in _ROUTES
        }
        if self.message_id is None and self.came_back:
            kept[CAME_BACK_HEADER] = 1
        if sum(map(len, BasicProperties(headers=kept).encode())) <= MAX_HEADERS_BYTES:
            return kept
        return {
            name: value
            for name, value in kept.items()
            if name.startswith(_OURS) and len(str(value)) <= _LONGEST
        }
