"""One case's stage: queues and buckets of its own, workers on it, and the journals at its end."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika

from tests.canaries import CANARIES, leaks
from tests.faults.checker import Arrival, Counts, Published, Stored, check
from tests.faults.failpoints import Fault
from tests.faults.forked import ForkedWorker
from tests.faults.last_words import history, testify
from tests.json_lines import json_lines
from tests.live_worker import LiveWorker, Site, eventually
from worker.broker.topology import Topology
from worker.demo.receiver import Received, Receiver, Reply
from worker.demo.s3_server import S3Server

#: How long each wait of a case may take, seconds. A machine may be slow, and the real trainer is.
PATIENCE_SECONDS = 480.0

#: Quick, so that a case is: what takes minutes in production takes seconds here.
QUICK = {
    "RABBITMQ_HEARTBEAT_SECONDS": "4",
    "LEASE_TERM_SECONDS": "3",
    "LEASE_RENEW_SECONDS": "0.5",
    "PARKED_SECONDS": "0.7",
    "JOB_RETRY_SECONDS": "0.3",
    "WEBHOOK_RETRY_SECONDS": "0.3,1",
    "PROGRESS_INTERVAL_SECONDS": "0.15",
    # Not quick: a report that was given up on may be read all the same, and late, where the
    # campaign has more to do than its machine can.
    "WEBHOOK_TIMEOUT_SECONDS": "15",
    "DOWNLOAD_PARALLELISM": "2",
    "S3_TIMEOUT_SECONDS": "5",
    "LOG_LEVEL": "INFO",
    # The models are so small that a second thread only waits.
    "OMP_NUM_THREADS": "1",
}


#: How long a fault may take to strike after its job's end was told, seconds.
_AFTER_THE_END_SECONDS = 30.0


class PointNotReachedError(Exception):
    """The jobs came to their ends without the fault: the case has shown nothing."""


@dataclass(frozen=True)
class RealTraining:
    """What workers with the real trainer need.

    Attributes:
        base_model: a folder. picture: the bytes of one.
        steps: of a job; fewer than with the stand-in, whose steps cost nothing.
        adapter: bytes of an undisturbed job's, once that is known.
        adapter_sha256: of the same; every other must have it.
    """

    base_model: Path
    picture: bytes
    steps: int = 4
    adapter: bytes | None = None
    adapter_sha256: str | None = None


@dataclass(frozen=True)
class Lab:
    """What all cases share: a broker, a store, a folder.

    Attributes:
        login: address of the broker for workers, with a password that must not be seen.
    """

    broker_url: str
    s3: S3Server
    folder: Path
    real: RealTraining | None = None
    login: str | None = None


@dataclass
class Scene:
    """One case. Use `scene()` to get one."""

    site: Site
    receiver: Receiver
    settings: dict[str, str]
    arrivals: list[Arrival] = field(default_factory=list)
    real: RealTraining | None = None
    published: list[Published] = field(default_factory=list)
    workers: list[LiveWorker] = field(default_factory=list)
    shown: dict[str, bytes] = field(default_factory=dict)

    # --- acting

    def note(self, request: Received, reply: Reply) -> None:
        """Keep what came to a receiver, in the order of arrival."""
        key, job_id = request.headers["idempotency-key"], request.json["job_id"]
        self.arrivals.append(Arrival(job_id, request.event, key, request.body, reply.status))
        # The one place that the token is for.
        others = {k: v for k, v in request.headers.items() if k != "authorization"}
        said = f"{request.path} {others}"
        self.shown[f"webhook {len(self.arrivals)}, its headers"] = said.encode()

    def publish(self, *, times: int = 1, refused: bool = False, **changes: Any) -> str:
        """Publish a job as a backend does, so many times; its id."""
        message = self.site.message(**{"parameters": {"max_train_steps": 8}, **changes})
        for _ in range(times):
            self.site.publish(message)
            self.published.append(Published(message["job_id"], refused))
        return str(message["job_id"])

    def start(
        self, fault: Fault | None = None, *, own_process: bool = False, **settings: str
    ) -> LiveWorker:
        """Start a worker; its failpoint strikes once in this case.

        A process of its own is not forked from one that has imported everything, so that its
        memory is its own.
        """
        environment = self.site.environment(**{**QUICK, **CANARIES, **self.settings, **settings})
        environment["FAULT"] = fault.text() if fault else ""
        environment["FAULT_FOLDER"] = str(self.site.folder)
        log_file = self.site.folder / f"worker-{len(self.workers)}.log"
        worker: LiveWorker
        if own_process:
            worker = LiveWorker(("-m", "tests.faults.worker"), environment, log_file)
        else:
            worker = ForkedWorker(environment, log_file)
        self.workers.append(worker)
        return worker

    def strike(self, fault: Fault, **settings: str) -> LiveWorker:
        """Start a worker and wait until its fault has struck.

        Raises:
            PointNotReachedError: the jobs ended without.
            TimeoutError: neither the fault nor the end came.
        """
        worker = self.start(fault, **settings)
        struck_or_ended = f"{fault}: the point or the end is reached"
        eventually(lambda: self.struck() or not self._untold(), struck_or_ended, PATIENCE_SECONDS)
        try:
            eventually(self.struck, f"{fault}: the point is reached", _AFTER_THE_END_SECONDS)
        except TimeoutError as error:
            raise PointNotReachedError(str(error)) from None
        return worker

    def struck(self) -> bool:
        """Whether the fault has struck."""
        return (self.site.folder / "fault-fired").exists()

    def wait_for_ends(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until every job has its result and its receiver was told, or will not be."""
        eventually(self._all_ended, "every job has ended", seconds, every_seconds=0.2)

    # --- looking

    def trained_steps(self) -> list[tuple[str, int]]:
        """Job and number of every step that any trainer made."""
        path = self.site.folder / "steps.jsonl"
        rows = json_lines(path) if path.exists() else []
        return [(row["job_id"], row["step"]) for row in rows]

    def lease_epoch(self, job_id: str) -> int:
        """Number of the job's last claim, 0 before the first."""
        body = self.site.objects(f"jobs/{job_id}/lease.json").get(f"jobs/{job_id}/lease.json")
        return int(json.loads(body)["epoch"]) if body else 0

    def finish(self) -> Counts:
        """Let everything come to rest, stop the workers, and check the journals."""
        self._wait_for_rest()
        for _ in range(3):
            self._drain()
            if not self._waiting():
                break
            # What a worker gave back when it ended: somebody else's turn.
            self.start()
            self._wait_for_rest()
        stored = Stored(
            objects=self.site.objects(),
            dead=self._take_all(self._topology.dead),
            dead_events=self._take_all(self._topology.events_dead),
            waiting=self._waiting(),
        )
        counts = check(self.published, stored, list(self.arrivals), steps=self.trained_steps())
        for finding in leaks(self._places(stored)):
            counts.blame("leaked", finding)
        if self.real and self.real.adapter_sha256:
            for digest in self.adapters(stored.objects).keys() - {self.real.adapter_sha256}:
                counts.blame("inexact", f"the adapter is {digest[:12]} and not as undisturbed")
        if not counts.clean:
            counts.findings += history(self.receiver, self.workers)
        return counts

    @staticmethod
    def adapters(objects: Mapping[str, bytes]) -> dict[str, bytes]:
        """All adapters, each once, by their digests."""
        name = "/lora_weights.safetensors"
        found = [body for key, body in objects.items() if key.endswith(name)]
        return {hashlib.sha256(body).hexdigest(): body for body in found}

    @property
    def _topology(self) -> Topology:
        return Topology(
            queue=self.site.queue, job_retry_seconds=(0.3,), events_retry_seconds=(0.3, 1)
        )

    def _untold(self) -> set[str]:
        """Jobs whose receiver has not heard of their end."""
        told = {one.job_id for one in list(self.arrivals) if one.terminal and one.accepted}
        return {one.job_id for one in self.published if not one.refused} - told

    def _all_ended(self) -> bool:
        open_jobs = self._untold()
        given_up = self.site.queue_sizes(self._topology.events_dead)[0] if open_jobs else 0
        refused = sum(one.refused for one in self.published)
        if len(open_jobs) > given_up:
            return False
        return not refused or self.site.queue_sizes(self._topology.dead)[0] >= refused

    def _working_queues(self) -> list[str]:
        queues = [self._topology.main, *(one.name for one in self._topology.own_queues)]
        dead = (self._topology.dead, self._topology.events_dead)
        return [name for name in queues if name not in dead]

    def _waiting(self) -> int:
        return sum(self.site.queue_sizes(*self._working_queues()))

    def _wait_for_rest(self) -> None:
        empty = "the queues are empty"
        eventually(lambda: self._waiting() == 0, empty, PATIENCE_SECONDS, every_seconds=0.3)

    def _drain(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.signal(signal.SIGCONT)
                worker.signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(PATIENCE_SECONDS)

    def _take_all(self, queue: str) -> list[tuple[dict[str, Any], bytes]]:
        taken = []
        while (message := self.site.take(queue)) is not None:
            taken.append(message)
        return taken

    def _places(self, stored: Stored) -> dict[str, bytes]:
        """Everything that a stranger may get to see."""
        dead = {"dead letter": stored.dead, "dead event": stored.dead_events}
        return {
            **self.shown,
            **{
                f"{kind} {number}": repr(headers).encode() + body
                for kind, messages in dead.items()
                for number, (headers, body) in enumerate(messages)
            },
            **{f"webhook {number}": one.body for number, one in enumerate(self.arrivals)},
            **{f"object {key}": key.encode() + body for key, body in stored.objects.items()},
            # Logs, and whatever was left behind: by workers that were killed, in the work folder.
            **{f"file {name}": body for name, body in _files(self.site.folder)},
        }


@contextlib.contextmanager
def scene(
    lab: Lab,
    *,
    respond: Callable[[Received], Reply] = lambda request: Reply(),
    store_url: str | None = None,
    **settings: str,
) -> Iterator[Scene]:
    """A fresh scene. Its workers, queues, objects and files are gone at the end.

    Args:
        lab: what it is played in.
        respond: how the receiver answers.
        store_url: where workers find the store, if not at the lab's own address.
        settings: of every worker.
    """
    name = uuid.uuid4().hex[:10]
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=lab.folder))
    catalogue = folder / "base_models.toml"
    location = lab.real.base_model if lab.real else "nowhere"
    catalogue.write_text(f'[tiny]\nlocation = "{location}"\n')
    note: list[Callable[[Received, Reply], None]] = []
    with Receiver(respond=respond, on_request=lambda *seen: note[0](*seen)) as receiver:
        site = Site(
            lab.broker_url,
            lab.s3,
            f"media-{name}",
            f"results-{name}",
            receiver,
            folder,
            catalogue,
            queue=f"train-{name}",
        )
        client = site.client
        for bucket in (site.media, site.results):
            client.create_bucket(Bucket=bucket)
        through = {"S3_ENDPOINT_URL": store_url} if store_url else {}
        kind = {"REAL_TRAINER": "1"} if lab.real else {}
        login = {"RABBITMQ_URL": lab.login} if lab.login else {}
        played = Scene(site, receiver, {**through, **kind, **login, **settings}, real=lab.real)
        note.append(played.note)
        try:
            yield played
        except Exception as error:
            testify(played.workers, error)
            raise
        finally:
            for worker in played.workers:
                if worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
            _sweep(played)


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Name and content of every file; what a trainer without a supervisor takes away is gone."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                yield path.relative_to(folder), path.read_bytes()


def _sweep(played: Scene) -> None:
    site = played.site
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection = site.connect()
        channel = connection.channel()
        for one in (played._topology.main, *(q.name for q in played._topology.own_queues)):
            channel.queue_delete(one)
        channel.exchange_delete(played._topology.control)
        connection.close()
    client = site.client
    for bucket in (site.media, site.results):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for row in page.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=row["Key"])
        client.delete_bucket(Bucket=bucket)
    if "KEEP_CASES" not in os.environ:
        shutil.rmtree(site.folder, ignore_errors=True)


def wait(seconds: float) -> None:
    """Let time pass: a fault's own duration, never a wait for something to be done."""
    time.sleep(seconds)
