"""How does a running job hear at once that it is canceled? A fanout that every worker listens to.

The tombstone in the store is the truth; this only makes it fast. A worker that misses the message
sees the tombstone when it next renews the job's lease.
"""

import json
import threading

import structlog

from worker.broker.confirms import PublishFailed
from worker.broker.delivery import Delivery
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology

log = structlog.get_logger()


class RunningJobs:
    """The jobs that this worker works on, each with the event that cancels it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._canceled: dict[str, threading.Event] = {}

    def add(self, job_id: str, canceled: threading.Event) -> None:
        """The job was taken up."""
        with self._lock:
            self._canceled[job_id] = canceled

    def remove(self, job_id: str) -> None:
        """The job ended here."""
        with self._lock:
            self._canceled.pop(job_id, None)

    def cancel(self, job_id: str) -> bool:
        """Have the job stop at its next step; whether it runs here."""
        with self._lock:
            canceled = self._canceled.get(job_id)
        if canceled is None:
            return False
        canceled.set()
        return True


class ControlListener:
    """Handles what comes over the fanout."""

    def __init__(self, running: RunningJobs) -> None:
        self._running = running

    def handle(self, delivery: Delivery) -> None:
        """Obey a control message; one that is not understood is logged and forgotten."""
        try:
            job_id = json.loads(delivery.body)["cancel"]
        except (ValueError, TypeError, KeyError, RecursionError):
            log.warning("control_message_not_understood", body=delivery.body[:200])
            return
        if isinstance(job_id, str) and self._running.cancel(job_id):
            log.info("job_canceled_by_operator", job_id=job_id)


def announce_cancel(publisher: Publisher, topology: Topology, job_id: str) -> bool:
    """Tell all workers; False if the broker could not, or no worker listens."""
    body = json.dumps({"cancel": job_id}).encode()
    try:
        publisher.publish(
            "", body, exchange=topology.control, message_id=None, headers=None, timeout_seconds=10
        )
    except PublishFailed as error:
        log.info("cancel_not_announced", job_id=job_id, reason=str(error))
        return False
    return True
