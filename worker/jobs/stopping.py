"""How does the worker learn that it is to stop? From a byte in a pipe.

The kernel may hand a signal to any thread, but its handler runs on the main one, and a main thread
that waits for a lock is not woken by a signal that hit another. The interpreter writes to its
wake-up descriptor whichever thread is hit.
"""

import os
import select
import signal
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """Whether the worker is to stop; set once, by a signal or by any thread."""

    def __init__(self) -> None:
        self._requested = False
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)

    def __call__(self) -> bool:
        """Whether it was requested."""
        return self._requested

    def request(self) -> None:
        """Ask the worker to stop; takes no lock, so a signal's handler may call it."""
        self._requested = True
        os.write(self._write_end, b"\0")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the request, on the main thread; whether it has come."""
        while not self._requested:
            ready, _, _ = select.select([self._read_end], [], [], seconds)
            if ready:
                os.read(self._read_end, 64)  # the handler of what woke us has run by then
            elif seconds is not None:
                break
        return self._requested

    def on_signals(self, again: Callable[[int], None]) -> None:
        """SIGTERM and SIGINT request the stop; `again` is called with each further one."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._requested:
                again(number)
            self.request()

        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
