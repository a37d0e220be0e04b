"""Messages out: durable, confirmed, and on a connection of their own.

A memory alarm stops the broker from reading what publishers send. On their own connection they
can wait for it, or give up, without holding up a single acknowledgement.
"""

import threading
from collections.abc import Mapping

from worker.broker.confirms import Publication, PublishFailed
from worker.broker.connection import BrokerAddress
from worker.broker.publishing_link import CLOSE_SECONDS, PublishingLink

__all__ = ["PublishFailed", "Publisher"]


class Publisher:
    """Publishes from any thread; connects at the first message and stays connected.

    Args:
        address: the broker.
        name: names the thread, the connection and the log lines.
    """

    def __init__(self, address: BrokerAddress, *, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._link = PublishingLink(address, name)
        self._thread: threading.Thread | None = None
        self._closed = False

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str | None,
        headers: Mapping[str, object] | None,
        content_type: str = "application/json",
        exchange: str = "",
        timeout_seconds: float = 30.0,
    ) -> None:
        """Publish to `queue` and return once the broker has it on disk or in every replica.

        With `exchange`, `queue` is the routing key there. Delivered at least once: after a lost
        connection a message may have been written twice, and after a time-out it may still
        arrive.

        Raises:
            PublishFailed: unroutable, refused, connection lost twice, or no answer in time.
        """
        publication = Publication(
            exchange=exchange,
            routing_key=queue,
            body=body,
            message_id=message_id,
            headers=dict(headers or {}),
            content_type=content_type,
        )
        with self._lock:
            if self._closed:
                raise PublishFailed(f"{publication.target}: the publisher is closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._link.run, name=f"broker-{self._name}", daemon=True
                )
                self._thread.start()
            self._link.submit(publication)
        try:
            publication.done.result(timeout_seconds)
        except TimeoutError:
            if publication.done.cancel():
                raise PublishFailed(
                    f"{publication.target}: no answer from the broker within "
                    f"{timeout_seconds:g} s ({self._link.state})"
                ) from None
            publication.done.result()

    def close(self) -> None:
        """Disconnect; what is not confirmed yet fails. Further messages are refused."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._link.close()
            thread.join(2 * CLOSE_SECONDS)
