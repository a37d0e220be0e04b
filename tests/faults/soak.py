"""A thousand jobs, five workers, a random fault every few seconds: `python -m tests.faults.soak`.

Two of the workers are never killed, so that memory and open files can be compared at the start, at
half of the jobs and at the end; everything else happens to them too. Prints the faults, the
footprints, and as last line one JSON object.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.scene import Lab, Scene, scene
from tests.live_worker import LiveWorker, eventually
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Received, Reply
from worker.demo.s3_server import S3Server

WORKERS, STEADY_WORKERS = 5, 2

#: A job has eight steps: about a second of training, and as much again for all around it.
STEP_SECONDS = "0.1"

#: Time between two faults, seconds.
FAULT_SECONDS = (1.0, 4.0)

#: Jobs that must have ended before the first look at memory: by then everything was used once.
WARM_JOBS = 50

#: How long all the jobs may take, seconds a job.
PATIENCE_SECONDS_A_JOB = 5.0


@dataclass(frozen=True)
class Footprint:
    """What a process holds: resident memory in MiB, open files, threads."""

    rss_mib: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return cls(
            round(int(status["VmRSS"].split()[0]) / 1024, 1),
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            int(status["Threads"]),
        )


@dataclass
class Soak:
    """The workers in their places, and what is done to them."""

    played: Scene
    node: RabbitMQNode
    s3: S3Server
    chance: random.Random
    refusing: list[int]
    places: list[LiveWorker] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    def fill(self) -> None:
        """Put a worker into every place."""
        self.places = [self.played.start(own_process=True) for _ in range(WORKERS)]

    def footprints(self) -> list[Footprint]:
        """Of the workers that are never killed."""
        return [Footprint.of(one.process.pid) for one in self.places[:STEADY_WORKERS]]

    def strike(self) -> None:
        """One random fault, to its end; what died is started again, as an orchestrator does."""
        fault: Callable[[], None] = self.chance.choice(
            [
                self.kill_worker,
                self.drain_worker,
                self.stop_worker,
                self.kill_trainer,
                self.close_connections,
                self.refuse_webhooks,
                self.stop_store,
                self.kill_broker,
            ]
        )
        self.faults[fault.__name__] = self.faults.get(fault.__name__, 0) + 1
        fault()

    def kill_worker(self) -> None:
        self._replace(signal.SIGKILL)

    def drain_worker(self) -> None:
        self._replace(signal.SIGTERM)

    def stop_worker(self) -> None:
        """Long enough, now and then, that another takes its job over."""
        worker = self.chance.choice(self.places)
        worker.signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 8))
        worker.signal(signal.SIGCONT)

    def kill_trainer(self) -> None:
        for trainer in _children(self.chance.choice(self.places).process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(trainer, signal.SIGKILL)

    def close_connections(self) -> None:
        self.node.ctl("close_all_connections", "--global", "on purpose")

    def refuse_webhooks(self) -> None:
        self.refusing[0] = self.chance.choice([429, 500, 503])
        time.sleep(self.chance.uniform(0.5, 3))
        self.refusing[0] = 200

    def stop_store(self) -> None:
        os.kill(self.s3.pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 3))
        os.kill(self.s3.pid, signal.SIGCONT)

    def kill_broker(self) -> None:
        self.node.kill()
        self.node.start()

    def _replace(self, number: int) -> None:
        place = self.chance.randrange(STEADY_WORKERS, WORKERS)
        self.places[place].signal(number)
        self.places[place].wait()
        self.places[place] = self.played.start(own_process=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    asked = parser.parse_args()
    began = time.monotonic()
    with _stage(asked.seed) as soak:
        played = soak.played
        url = played.site.put_picture("training/a.jpg")
        for _ in range(asked.jobs):
            played.publish(image_urls=[url])
        soak.fill()
        _wait_for_jobs(played, min(WARM_JOBS, asked.jobs // 2))
        looks = [soak.footprints()]
        deadline = time.monotonic() + asked.jobs * PATIENCE_SECONDS_A_JOB
        while _jobs_ended(played) < asked.jobs and time.monotonic() < deadline:
            time.sleep(soak.chance.uniform(*FAULT_SECONDS))
            soak.strike()
            if len(looks) == 1 and _jobs_ended(played) >= asked.jobs // 2:
                looks.append(soak.footprints())
            print(f"{_jobs_ended(played):6} jobs ended after {sum(soak.faults.values())} faults")
        played.wait_for_ends()
        seconds = time.monotonic() - began
        looks.append(soak.footprints())
        counts = played.finish()
    for name, number in sorted(soak.faults.items()):
        print(f"{number:6} × {name}")
    for finding in counts.findings:
        print(finding)
    sums = {name: value for name, value in asdict(counts).items() if name != "findings"}
    print(f"{'steady worker':16}{'RSS MiB':>24}{'open files':>24}{'threads':>24}")
    for index in range(STEADY_WORKERS):
        columns = zip(*(asdict(look[index]).values() for look in looks), strict=True)
        print(f"{index:<16}" + "".join(f"{' → '.join(map(str, one)):>24}" for one in columns))
    print(
        json.dumps(
            {
                **sums,
                "faults": sum(soak.faults.values()),
                "seconds": round(seconds),
                "start": [asdict(one) for one in looks[0]],
                "end": [asdict(one) for one in looks[-1]],
            }
        )
    )
    return 0 if counts.clean else 1


@contextlib.contextmanager
def _stage(seed: int) -> Iterator[Soak]:
    refusing = [200]

    def respond(request: Received) -> Reply:
        return Reply(refusing[0])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        node = stack.enter_context(RabbitMQNode(folder / "rabbitmq"))
        s3 = stack.enter_context(S3Server())
        played = stack.enter_context(
            scene(Lab(node.url, s3, folder), respond=respond, STEP_SECONDS=STEP_SECONDS)
        )
        yield Soak(played, node, s3, random.Random(seed), refusing)


def _jobs_ended(played: Scene) -> int:
    return len({one.job_id for one in list(played.arrivals) if one.terminal and one.accepted})


def _wait_for_jobs(played: Scene, jobs: int) -> None:
    eventually(lambda: _jobs_ended(played) >= jobs, f"{jobs} jobs ended", 300, every_seconds=0.5)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(main())
