"""What was heard and said last, for whoever reads that a case is not clean."""

import signal
import time
from collections.abc import Iterable

from tests.live_worker import LiveWorker
from worker.demo.receiver import Receiver

#: Lines of a worker's log that are shown.
_LINES = 60


def history(receiver: Receiver, workers: Iterable[LiveWorker]) -> list[str]:
    """Every webhook in the order of arrival, and the last lines of each worker's log."""
    arrived = [
        f"arrived at {seen.monotonic_seconds:.3f}: {seen.headers['idempotency-key']} "
        f"{(seen.json.get('progress') or {}).get('progress_percent', '')}"
        for seen in receiver.journal
    ]
    return arrived + [line for worker in workers for line in _last_words(worker)]


def testify(workers: Iterable[LiveWorker], error: Exception) -> None:
    """Add to the error what the workers said last, and what those that live are doing."""
    for worker in workers:
        said = _last_words(worker)
        if worker.process.poll() is None:
            length = worker.log_file.stat().st_size
            worker.signal(signal.SIGUSR1)
            time.sleep(0.5)
            said.append(worker.log_file.read_bytes()[length:].decode(errors="replace"))
        error.add_note("\n".join(said))


def _last_words(worker: LiveWorker) -> list[str]:
    lines = worker.log_file.read_text(errors="replace").splitlines()
    return [f"{worker.log_file.name}, status {worker.process.poll()}:", *lines[-_LINES:]]
