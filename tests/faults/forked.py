"""Worker processes that start at once: forked from a process that has imported everything.

The campaign starts some eight hundred of them. The fork happens in multiprocessing's fork server,
which has one thread, before the worker's own code has run.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.live_worker import LiveWorker

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.worker"])

#: Held by whoever starts a process or asks for an exit status: the fork server says that once, to
#: the first who reads it, and starting a process asks for those of all others too.
_ASKING = threading.Lock()


class ForkedWorker(LiveWorker):
    """As a worker that was started, but quicker."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        log.touch()
        self.log_file = log
        self.process = ForkedProcess(environment, log)


class ForkedProcess:
    """The part of `subprocess.Popen` that is asked of a worker."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._process = _CONTEXT.Process(target=_run, args=(environment, log), daemon=False)
        with _ASKING:
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with _ASKING:
            return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        # Readable once the status has come; who reads it is settled by the lock.
        multiprocessing.connection.wait([self._process.sentinel], seconds)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("worker", seconds or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(environment: dict[str, str], log: Path) -> None:
    from tests.faults.worker import main  # the worker's modules stay out of the campaign's process

    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    os.close(out)
    sys.exit(main())
