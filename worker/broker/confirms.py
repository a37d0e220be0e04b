"""Which published messages has the broker not answered for yet? The bookkeeping of confirms."""

from concurrent.futures import Future
from dataclasses import dataclass, field


class PublishFailed(Exception):  # noqa: N818 - named as its callers speak of it
    """The broker did not take the message, or nobody knows whether it did."""


@dataclass(eq=False)
class Publication:
    """A message on its way out.

    Attributes:
        done: ends with None once confirmed, or with `PublishFailed`. Canceled by a caller that
            waits no longer.
        tries: how often it has been written to a connection.
        returned: why the broker gave it back as unroutable; none if it did not.
    """

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    message_id: str | None
    headers: dict[str, object] = field(repr=False)
    content_type: str
    done: "Future[None]" = field(default_factory=Future, repr=False)
    tries: int = 0
    returned: str | None = None

    @property
    def target(self) -> str:
        """Where it goes, for an error's text."""
        return f"exchange {self.exchange!r}" if self.exchange else f"queue {self.routing_key!r}"

    def succeed(self) -> None:
        """The broker has it."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        """The broker does not have it, as far as anybody knows."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(PublishFailed(f"{self.target}: {reason}"))


class Unconfirmed:
    """The messages written to one channel in confirm mode, by their number on it, from 1."""

    def __init__(self) -> None:
        self._written = 0
        self._open: dict[int, Publication] = {}

    def __len__(self) -> int:
        return len(self._open)

    def wrote(self, publication: Publication) -> None:
        """The next message of the channel is this one."""
        self._written += 1
        self._open[self._written] = publication

    def returned(self, exchange: str, routing_key: str, body: bytes, reason: str) -> None:
        """The broker gave a message back; its confirm follows, and must not count as success.

        A return carries no number. Returns come in the order of publishing, so it is the oldest
        message alike that has not come back; two that are alike share their fate anyway.
        """
        for publication in self._open.values():
            alike = (exchange, routing_key, body) == (
                publication.exchange,
                publication.routing_key,
                publication.body,
            )
            if alike and publication.returned is None:
                publication.returned = reason
                return

    def answered(self, number: int, *, multiple: bool, acked: bool) -> None:
        """The broker confirmed (or refused) message `number`, or all up to it."""
        numbers = [n for n in self._open if n <= number] if multiple else [number]
        for each in numbers:
            publication = self._open.pop(each, None)
            if publication is None:
                continue
            if not acked:
                publication.fail("refused by the broker (nack): the queue is full or has failed")
            elif publication.returned is not None:
                publication.fail(f"not routable ({publication.returned})")
            else:
                publication.succeed()

    def take_all(self) -> list[Publication]:
        """The channel is gone: what was not answered for, oldest first."""
        left, self._open, self._written = list(self._open.values()), {}, 0
        return left
