"""Many workers on one machine, with a broker, a store and a receiver of their own."""

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika

from benchmarks import processes
from benchmarks.broker_load import broker_load
from benchmarks.object_server import ObjectServer
from benchmarks.period import Moment
from tests.live_worker import LiveWorker
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Received, Receiver, Reply

#: Time that the stand-in trainer takes for a step, seconds: about an SD 1.5 step on a data-centre
#: GPU, so that the supervisor hears as many steps a second as it would.
STEP_SECONDS = 0.1

#: Buckets of the pictures and of the results.
MEDIA, RESULTS = "media", "results"

#: Longest time for all workers to be connected, seconds.
_START_SECONDS = 300.0

#: Log lines of a worker that is up: its three consumers are connected.
_CONNECTIONS_AT_START = 3


class Heard:
    """What the receiver heard: requests by event, and the terminal events of each job."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.requests: Counter[str] = Counter()
        self.ends: dict[str, list[str]] = {}

    def note(self, request: Received, _reply: Reply) -> None:
        """Called by the receiver for each request."""
        with self._changed:
            self.requests[request.event] += 1
            if request.event != "progress":
                self.ends.setdefault(request.json["job_id"], []).append(request.event)
            self._changed.notify_all()

    def wait_for_ends(self, count: int, timeout_seconds: float) -> None:
        """Wait until so many jobs have ended. Raises `TimeoutError` with the number reached."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.ends) >= count, timeout_seconds):
                ended = len(self.ends)
                raise TimeoutError(f"{ended} of {count} jobs ended in {timeout_seconds:g} s")

    def wait_for_progress(self, count: int, timeout_seconds: float) -> None:
        """Wait until so many progress reports have come. Raises `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self.requests["progress"] >= count, timeout_seconds
            ):
                came = self.requests["progress"]
                raise TimeoutError(f"{came} of {count} reports in {timeout_seconds:g} s")


@dataclass
class Crowd:
    """The parts, once they run.

    Attributes:
        node: the broker's own node; None if it is somebody else's.
    """

    broker_url: str
    node: RabbitMQNode | None
    store: ObjectServer
    receiver: Receiver
    heard: Heard
    folder: Path
    workers: list[LiveWorker] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """The supervisors' processes."""
        return [worker.process.pid for worker in self.workers]

    def start_workers(self, count: int) -> None:
        """Start workers with the settings that an operator gets, and wait until all are up."""
        for number in range(count):
            self.workers.append(
                LiveWorker(
                    ("-m", "tests.standin_worker", str(STEP_SECONDS)),
                    self._environment(number),
                    self.folder / f"worker-{number}.log",
                )
            )
        deadline = time.monotonic() + _START_SECONDS
        for worker in self.workers:
            while len(worker.log("broker_connected")) < _CONNECTIONS_AT_START:
                if worker.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no worker: {worker.log_file.read_text()[-2000:]}")
                time.sleep(0.1)

    def publish(self, job_ids: Iterable[str], *, steps: int, pictures: int) -> None:
        """Publish a job for each id, as backends do, each confirmed by the broker."""
        address = pika.URLParameters(self.broker_url)
        with contextlib.closing(pika.BlockingConnection(address)) as connection:
            channel = connection.channel()
            channel.queue_declare("model_training", durable=True)
            channel.confirm_delivery()
            properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
            for style, job_id in enumerate(job_ids, start=10_000):
                message = {
                    "job_id": job_id,
                    "style_id": style,
                    "image_urls": [f"s3://{MEDIA}/{number}.jpg" for number in range(pictures)],
                    "webhook_url": self.receiver.url,
                    "parameters": {"max_train_steps": steps},
                }
                body = json.dumps(message).encode()
                channel.basic_publish("", "model_training", body, properties, mandatory=True)

    def put_pictures(self, count: int) -> None:
        """Every job is trained on the same pictures."""
        client = self.store.client()
        for bucket in (MEDIA, RESULTS):
            client.create_bucket(Bucket=bucket)
        for number in range(count):
            client.put_object(Bucket=MEDIA, Key=f"{number}.jpg", Body=b"a picture")

    def result_keys(self) -> list[str]:
        """All keys of the results bucket."""
        pages = self.store.client().get_paginator("list_objects_v2").paginate(Bucket=RESULTS)
        return [row["Key"] for page in pages for row in page.get("Contents", ())]

    def moment(self) -> Moment:
        """The counters now."""
        pids = self.pids
        cpu_seconds = {
            "supervisors": sum(map(processes.cpu_seconds, pids)),
            "trainers": sum(map(processes.children_cpu_seconds, pids)),
            "store": processes.cpu_seconds(self.store.pid),
            "receiver and publisher": processes.cpu_seconds(os.getpid()),
        }
        if self.node is not None and self.node.pid is not None:
            cpu_seconds["broker"] = processes.cpu_seconds(self.node.pid)
        return Moment(
            monotonic_seconds=time.monotonic(),
            cpu_seconds=cpu_seconds,
            requests=self.store.counts(),
            webhooks=Counter(self.heard.requests),
            broker=broker_load(self.node) if self.node is not None else None,
        )

    def _environment(self, number: int) -> dict[str, str]:
        home = self.folder / f"home-{number}"
        home.mkdir()
        return {
            **os.environ,
            **self.store.environment,
            "RABBITMQ_URL": self.broker_url,
            "S3_BUCKET": RESULTS,
            "INTERNAL_API_TOKEN": "benchmark",
            "WEBHOOK_ALLOWED_HOSTS": self.receiver.host,
            "BASE_MODELS_FILE": str(self.folder / "models.toml"),
            "DEFAULT_BASE_MODEL": "tiny",
            "WORK_DIR": str(home / "work"),
            "HOME": str(home),
            # One slot a worker, whatever this machine has.
            "CUDA_VISIBLE_DEVICES": "",
        }


@contextlib.contextmanager
def gathered(folder: Path) -> Iterator[Crowd]:
    """The parts without workers: a private broker, or the one that `RABBITMQ_URL` names."""
    (folder / "models.toml").write_text('[tiny]\nlocation = "nowhere"\n')
    heard = Heard()
    with contextlib.ExitStack() as stack:
        url, node = os.environ.get("RABBITMQ_URL"), None
        if url is None:
            node = stack.enter_context(RabbitMQNode(folder / "rabbitmq"))
            url = node.url
        store = stack.enter_context(ObjectServer())
        receiver = stack.enter_context(Receiver(on_request=heard.note))
        crowd = Crowd(url, node, store, receiver, heard, folder)
        stack.callback(_end, crowd.workers)
        yield crowd


def _end(workers: list[LiveWorker]) -> None:
    for worker in workers:
        worker.signal()
    for worker in workers:
        worker.end()


def log_events(workers: list[LiveWorker], level: str) -> Counter[str]:
    """Log lines of a level, by event."""
    found: Counter[Any] = Counter()
    for worker in workers:
        found.update(line["event"] for line in worker.log() if line.get("level") == level)
    return found
