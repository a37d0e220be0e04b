"""Does the store answer, how full are queues and GPUs? Looked at by a thread of its own.

So no probe and no scraper waits for any of them, and however many ask, they are asked as often.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from worker.observability import metrics
from worker.observability.gpus import GpuReading, read_gpus
from worker.storage.store import ObjectStore, ObjectUrl, StorageError

log = structlog.get_logger()

#: Time between two looks, seconds: at the GPUs; at store and queues while all is well; at the
#: store while it does not answer.
GPU_SECONDS, QUIET_SECONDS, WORRIED_SECONDS = 15.0, 60.0, 5.0


@dataclass
class Surroundings:
    """What was last seen around the worker.

    Attributes:
        url: an object that need not exist; the store is asked about it.
        queues: names of the queues that are counted together, by what they are called here.
        message_count: of a queue by its name; None if the broker does not say.
        ends: how many jobs have ended here; queues are looked at anew when it grows.
        store_problem: one sentence, or empty if the store answered when it was last asked.
        gpus, messages: what was found.
    """

    store: ObjectStore
    url: ObjectUrl
    queues: dict[str, tuple[str, ...]]
    message_count: Callable[[str], int | None]
    ends: Callable[[], int]
    store_problem: str = "the store has not been asked yet"
    gpus: list[GpuReading] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)
    _closing: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to look, now and then again and again; returns at once."""
        threading.Thread(target=self._run, name="surroundings", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()

    def store_answered(self, error: StorageError | None) -> None:
        """The store was asked: it is as it should be, or `error` says why not."""
        self.store_problem = f"the store cannot be used: {error}" if error else ""
        metrics.STORE_REACHABLE.set(not self.store_problem)

    def _run(self) -> None:
        gpus_at = far_at = 0.0
        ends = 0
        while not self._closing.wait(1.0):
            now = time.monotonic()
            try:
                if now >= gpus_at:
                    self._look_at_gpus()
                    gpus_at = now + GPU_SECONDS
                if ends != self.ends():
                    ends = self.ends()
                    self._look_at_queues()
                if now >= far_at:
                    self._look_at_store()
                    self._look_at_queues()
                    far_at = now + (WORRIED_SECONDS if self.store_problem else QUIET_SECONDS)
            except Exception:
                log.exception("surroundings_not_seen")
                far_at = gpus_at = now + QUIET_SECONDS

    def _look_at_gpus(self) -> None:
        self.gpus = read_gpus()
        for gpu in self.gpus:
            metrics.GPU_MEMORY_USED.labels(gpu.index).set(gpu.memory_used_bytes)
            metrics.GPU_MEMORY_TOTAL.labels(gpu.index).set(gpu.memory_total_bytes)
            if gpu.utilization is not None:
                metrics.GPU_UTILIZATION.labels(gpu.index).set(gpu.utilization)

    def _look_at_store(self) -> None:
        try:
            self.store.head(self.url)
        except StorageError as error:
            self.store_answered(error)
        else:
            self.store_answered(None)

    def _look_at_queues(self) -> None:
        for known_as, queues in self.queues.items():
            counts = [count for queue in queues if (count := self.message_count(queue)) is not None]
            if len(counts) == len(queues):
                self.messages[known_as] = sum(counts)
                metrics.QUEUE_MESSAGES.labels(known_as).set(sum(counts))
