"""Who computes now? Of the threads that share a device, the one that holds the baton.

With it go the device, torch's global random state and the libraries, of which hardly any is made
for threads. It is handed on in the order in which it was asked for. Where a thread has it to itself
nothing here costs anything.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_own = threading.local()


class Baton:
    """A lock that is handed to who has waited longest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._queue: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Wait for it."""
        with self._lock:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        turn.acquire()

    def hand_on(self) -> None:
        """Give it to the next who waits, if anybody does."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute inside; `breathe` lets others in between."""
        self.take()
        _own.baton = self
        try:
            yield
        finally:
            _own.baton = None
            self.hand_on()

    @contextmanager
    def laid_down(self) -> Iterator[None]:
        """Let others compute inside, in a thread that holds it."""
        self.hand_on()
        try:
            yield
        finally:
            self.take()

    def _breathe(self) -> None:
        if self._queue:
            self.hand_on()
            self.take()


def breathe() -> None:
    """Let others compute who wait to, if this thread shares its device with any.

    To be called between the parts of what takes long, where nothing depends on torch's global
    random state.
    """
    baton: Baton | None = getattr(_own, "baton", None)
    if baton is not None:
        baton._breathe()


@contextmanager
def aside() -> Iterator[None]:
    """Let others compute inside, for what needs neither device nor torch's global random state."""
    baton: Baton | None = getattr(_own, "baton", None)
    if baton is None:
        yield
        return
    with baton.laid_down():
        yield
