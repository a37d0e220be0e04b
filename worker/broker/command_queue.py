"""Commands for one thread from all others: handed over, carried out in order, answered once."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

#: Longest time that a caller waits for the thread to begin with its command, seconds.
COMMAND_SECONDS = 60.0

#: What the thread is to do; whether it was done.
Command = Callable[[], bool]


class CommandQueue:
    """What other threads want of `thread`. Refuses everything before `open` and after `close`.

    Args:
        thread: carries the commands out, whenever it calls `run`.
        wake: called after a command was handed over, so that `thread` looks soon.
    """

    def __init__(self, thread: threading.Thread, wake: Callable[[], None]) -> None:
        self._thread, self._wake = thread, wake
        self._lock = threading.Lock()
        self._commands: deque[tuple[Command, Future[bool]]] = deque()
        self._ended = True

    # --- what other threads call

    def open(self) -> None:
        """Take commands from now on."""
        self._ended = False

    def call(self, command: Command) -> bool:
        """Have it carried out and return its answer; False if that does not happen."""
        if threading.current_thread() is self._thread:
            return command()
        future = self.submit(command)
        try:
            return future.result(COMMAND_SECONDS)
        except TimeoutError:
            # Not begun: it never will be. Begun: it ends soon, the heartbeat sees to that.
            return False if future.cancel() else future.result()

    def submit(self, command: Command) -> Future[bool]:
        """Have it carried out; returns at once."""
        future: Future[bool] = Future()
        with self._lock:
            if self._ended:
                future.set_result(False)
                return future
            self._commands.append((command, future))
        self._wake()
        return future

    # --- the thread

    def run(self) -> None:
        """Carry out what was handed over. Raises what a command raises; its answer is False."""
        while self._commands:
            command, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(command())
            except BaseException:
                future.set_result(False)
                raise

    def close(self) -> None:
        """Refuse what comes from now on, and carry out what came before."""
        with self._lock:
            self._ended = True
        self.run()
