"""A queue of small jobs through one worker: one after another, and several at one trainer.

`python -m benchmarks.packed_queue [--jobs N] [--slots N] [--size tiny|medium] [--steps N]`: a real
broker, store and receiver, the real worker and trainer. Every job has its own pictures, seed, rank,
learning rate and length, and comes through both workers; its two adapters are compared. The trainer
is warm before the clock starts. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks.processes import children_cpu_seconds, cpu_seconds
from tests.fixtures.drawn_pictures import draw_pictures
from tests.live_worker import Site
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Receiver
from worker.demo.run import journal_problems
from worker.demo.s3_server import S3Server

#: As `make_base_model` knows them.
SIZES = ("tiny", "medium")

#: Longest time for all jobs to end, seconds.
_PATIENCE_SECONDS = 3600.0

#: What a `complete` webhook says of the job, and not of its run.
_OF_THE_JOB = (
    *("training_epochs", "training_steps", "lora_rank", "lora_alpha", "learning_rate", "seed"),
    *("resolution", "train_batch_size", "mixed_precision", "base_model", "images_used"),
)

#: Largest difference of a weight, and of a loss, that comes from another order of sums in fp32.
WEIGHT_TOLERANCE, LOSS_TOLERANCE = 5e-5, 1e-4

#: As in production: a machine with much else to do must lose no lease and no report.
PACE = {
    "PROGRESS_INTERVAL_SECONDS": "30",
    "WEBHOOK_TIMEOUT_SECONDS": "15",
    "LEASE_TERM_SECONDS": "180",
    "LEASE_RENEW_SECONDS": "30",
    "TRAINER_MAX_JOBS": "1000",
}

Message = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """All jobs through one worker.

    Attributes:
        seconds: from the first message published to the last end heard.
        cpu_seconds: processor time of worker and trainer meanwhile. rss_mb: most memory of the
            worker without its trainer, MB.
        ends: body of each job's terminal event, by its number. adapters: its weights.
        problems: what a receiver may complain about.
        trainers: how many were started.
    """

    seconds: float
    cpu_seconds: float
    rss_mb: float
    ends: list[dict[str, Any]]
    adapters: list[dict[str, np.ndarray]]
    problems: list[str]
    trainers: int

    @property
    def mean_company(self) -> float:
        """How many jobs shared a pass, on average over the jobs."""
        shared = [end["metadata"].get("packing", {}).get("mean_company", 1.0) for end in self.ends]
        return sum(shared) / len(shared)


def queue_of(site: Site, pictures: Sequence[Path], jobs: int, steps: int) -> list[Message]:
    """Jobs that differ in all in which jobs of one pass may."""
    urls = [site.put_picture(f"queue/{path.name}", path.read_bytes()) for path in pictures]
    return [
        {
            "style_id": 100 + number,
            "webhook_url": site.receiver.url,
            "image_urls": [urls[number % len(urls)], urls[(number + 1) % len(urls)]],
            "parameters": {
                "seed": number,
                "max_train_steps": steps + number % 4,
                "resolution": 64,
                "rank": (4, 8, 16)[number % 3],
                "learning_rate": (1e-4, 2e-4)[number % 2],
                "lr_scheduler": ("constant", "cosine")[number % 2],
                "lora_dropout": 0.1,
                "mixed_precision": "no",
                "validation_prompts": [],
            },
        }
        for number in range(jobs)
    ]


def run_through(site: Site, messages: Sequence[Message], slots: int) -> Run:
    """Send all of them to one worker with so many slots, and wait for the last end."""
    jobs = [{"job_id": str(uuid.uuid4()), **message} for message in messages]
    first = {**jobs[0], "job_id": str(uuid.uuid4()), "style_id": 99}
    worker = ("-m", "worker.cli", "run")
    with site.worker(*worker, name=f"slots-{slots}", PACK_SLOTS=str(slots), **PACE) as running:
        site.publish(first)
        site.wait_for_end(first["job_id"], _PATIENCE_SECONDS)
        began, worked = time.monotonic(), _cpu_seconds(running.process.pid)
        for job in jobs:
            site.publish(job)
        ends = [site.wait_for_end(job["job_id"], _PATIENCE_SECONDS) for job in jobs]
        seconds, worked = time.monotonic() - began, _cpu_seconds(running.process.pid) - worked
        status = Path(f"/proc/{running.process.pid}/status").read_text()
    problems = [
        f"{job['job_id']}: {problem}"
        for job in jobs
        for problem in journal_problems(site.journal(job["job_id"]))
    ]
    problems += [f"{end.json['job_id']}: {end.event}" for end in ends if end.event != "complete"]
    return Run(
        seconds=seconds,
        cpu_seconds=worked,
        rss_mb=int(status.partition("VmHWM:")[2].split()[0]) / 1024,
        ends=[end.json for end in ends],
        adapters=[_adapter(site, job) for job in jobs],
        problems=problems,
        trainers=len(running.log("trainer_started")),
    )


def _cpu_seconds(pid: int) -> float:
    return cpu_seconds(pid) + children_cpu_seconds(pid)


def largest_difference(one: Run, other: Run) -> float:
    """The largest difference of a weight in the adapters of one job; inf if they do not match."""
    largest = 0.0
    for mine, theirs in zip(one.adapters, other.adapters, strict=True):
        if mine.keys() != theirs.keys():
            return float("inf")
        gaps = [np.abs(mine[name] - theirs[name]).max() for name in mine]
        largest = max(largest, *(float(gap) for gap in gaps))
    return largest


def told_otherwise(one: Run, other: Run) -> list[str]:
    """What the receivers of two runs were told differently of a job; times are not looked at."""
    found = []
    for number, (mine, theirs) in enumerate(zip(one.ends, other.ends, strict=True)):
        here, there = mine["metadata"], theirs["metadata"]
        names = (here.keys() ^ there.keys()) - {"packing"}
        names |= {name for name in _OF_THE_JOB if here.get(name) != there.get(name)}
        losses = [end["training_metric"]["loss"] for end in (mine, theirs)]
        if abs(losses[0] - losses[1]) > LOSS_TOLERANCE:
            names.add(f"loss: {losses[0]} and {losses[1]}")
        found += [f"job {number}: {name}" for name in sorted(names)]
    return found


def _adapter(site: Site, job: Message) -> dict[str, np.ndarray]:
    key = f"models/style_{job['style_id']}/jobs/{job['job_id']}/lora_weights.safetensors"
    return dict(safetensors.numpy.load(site.objects(key)[key]))


@contextlib.contextmanager
def stage(size: str) -> Iterator[tuple[Site, list[Path]]]:
    """A broker, a store, a receiver and a base model of that size; pictures to train on."""
    with contextlib.ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="packed-queue-")))
        broker = parts.enter_context(RabbitMQNode(folder / "rabbitmq"))
        store = parts.enter_context(S3Server())
        receiver = parts.enter_context(Receiver())
        catalogue = folder / "base_models.toml"
        make = "import sys; from pathlib import Path; from worker.demo.tiny_base_model import *; "
        make += "make_base_model(Path(sys.argv[1]), size=sys.argv[2])"
        model = folder / "model"
        subprocess.run([sys.executable, "-c", make, str(model), size], check=True)
        catalogue.write_text(f'[tiny]\nlocation = "{model}"\nfamily = "sd1"\n')
        site = Site(broker.url, store, "media", "results", receiver, folder, catalogue)
        for bucket in (site.media, site.results):
            site.client.create_bucket(Bucket=bucket)
        yield site, draw_pictures(folder / "pictures", 6)


def _print(how: str, run: Run) -> None:
    print(f"{how}: {run.seconds:.1f} s, {run.cpu_seconds:.1f} s of processor", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args(arguments)
    with stage(asked.size) as (site, pictures):
        messages = queue_of(site, pictures, asked.jobs, asked.steps)
        plain = run_through(site, messages, 1)
        _print("one after another", plain)
        packed = run_through(site, messages, asked.slots)
        _print(f"{asked.slots} at a time", packed)
    problems = [*plain.problems, *packed.problems, *told_otherwise(plain, packed)]
    for problem in problems:
        print(f"problem: {problem}")
    difference = largest_difference(plain, packed)
    figures = {
        "jobs": asked.jobs,
        "slots": asked.slots,
        "size": asked.size,
        "steps": asked.steps,
        "plain_seconds": round(plain.seconds, 1),
        "packed_seconds": round(packed.seconds, 1),
        "wall_ratio": round(plain.seconds / packed.seconds, 2),
        "cpu_ratio": round(plain.cpu_seconds / packed.cpu_seconds, 2),
        "supervisor_mb": [round(plain.rss_mb, 1), round(packed.rss_mb, 1)],
        "mean_company": round(packed.mean_company, 2),
        "largest_difference": difference,
        "problems": len(problems),
    }
    print(json.dumps(figures))
    return 1 if problems or difference > WEIGHT_TOLERANCE else 0


if __name__ == "__main__":
    sys.exit(main())
