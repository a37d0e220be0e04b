"""A slot: one long-lived thread that handles the deliveries of its place, one at a time."""

import queue
import threading
from collections.abc import Callable

import structlog

from worker.broker.delivery import Delivery

log = structlog.get_logger()


class Slot(threading.Thread):
    """Runs `handle` for every delivery given to it, then `free` to get the next one.

    The thread lives as long as the worker, so that what it starts (a trainer that dies with the
    thread that started it) lives as long too.
    """

    def __init__(
        self,
        index: int,
        *,
        name: str,
        handle: Callable[[Delivery], None],
        free: Callable[[int], None],
        begin: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=f"{name}-{index}", daemon=True)
        self._index, self._handle, self._free = index, handle, free
        self._begin, self._end = begin, end
        self._deliveries: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()

    def deliver(self, delivery: Delivery) -> None:
        """Hand over a delivery; returns at once."""
        self._deliveries.put(delivery)

    def finish(self) -> None:
        """End the thread after what it was given."""
        self._deliveries.put(None)

    def run(self) -> None:
        """Handle deliveries until `finish`."""
        self._begin()
        while (delivery := self._deliveries.get()) is not None:
            try:
                self._handle(delivery)
            except Exception:
                log.exception("delivery_handling_failed", queue=delivery.queue)
            finally:
                self._free(self._index)
        self._end()
