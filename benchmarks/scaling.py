"""What does a worker cost everybody around it? `python -m benchmarks.scaling`.

Real workers with a stand-in trainer share one machine with a real broker, a store and a receiver.
They wait for a while, then drain a queue of short jobs, then train a long one each. What broker,
store and receiver carry is counted in each phase; `docs/scaling.md` works with these figures. The
last line is one JSON object.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.broker_load import BrokerLoad
from benchmarks.crowd import STEP_SECONDS, Crowd, gathered, log_events
from benchmarks.objects import RequestKind
from benchmarks.period import Period, between

#: Time for workers and broker to come to rest before a phase is measured, seconds.
SETTLE_SECONDS = 5.0

#: Steps of a job that is drained.
SHORT_STEPS = 1


def account(
    published: Iterable[str], keys: Iterable[str], ends: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """What became of the jobs, from three journals: published, stored, received.

    Returns:
        lost: jobs without a result or without a terminal event. duplicated: jobs with more than
        one terminal event. retrained: jobs that more than one claim has uploaded. failed: jobs
        whose terminal event says so.
    """
    results, epochs = set(), set()
    for key in keys:
        match key.split("/"):
            case ["jobs", job_id, "result.json"]:
                results.add(job_id)
            case ["jobs", job_id, "output", epoch, *_]:
                epochs.add((job_id, epoch))
    uploads = Counter(job_id for job_id, _ in epochs)
    jobs = list(published)
    return {
        "lost": sum(job not in results or not ends.get(job) for job in jobs),
        "duplicated": sum(len(ends.get(job, ())) > 1 for job in jobs),
        "retrained": sum(uploads[job] > 1 for job in jobs),
        "failed": sum("failed" in ends.get(job, ()) for job in jobs),
    }


def rest(crowd: Crowd, seconds: float) -> Period:
    """Measure the workers as they are."""
    time.sleep(SETTLE_SECONDS)
    before = crowd.moment()
    time.sleep(seconds)
    return between(before, crowd.moment())


def drain(crowd: Crowd, job_ids: Sequence[str], pictures: int, patience: float) -> Period:
    """Publish jobs and wait until all have ended; timed from the first message to the last end."""
    already = len(crowd.heard.ends)
    before = crowd.moment()
    began = time.monotonic()
    crowd.publish(job_ids, steps=SHORT_STEPS, pictures=pictures)
    print(f"{len(job_ids)} jobs published in {time.monotonic() - began:.1f} s", flush=True)
    crowd.heard.wait_for_ends(already + len(job_ids), patience)
    ended = time.monotonic()
    time.sleep(SETTLE_SECONDS)  # the last marks are still being written
    period = between(before, crowd.moment())
    return replace(period, seconds=ended - began)


def train(crowd: Crowd, job_ids: Sequence[str], pictures: int, seconds: float) -> Period:
    """One long job a worker, measured for `seconds` in the midst of it."""
    already, reports = len(crowd.heard.ends), crowd.heard.requests["progress"]
    steps = round((seconds + 4 * SETTLE_SECONDS) / STEP_SECONDS)
    crowd.publish(job_ids, steps=steps, pictures=pictures)
    crowd.heard.wait_for_progress(reports + len(job_ids), 60)
    period = rest(crowd, seconds)
    crowd.heard.wait_for_ends(already + len(job_ids), 2 * seconds + 60)
    return period


def by_verb(requests: Counter[RequestKind]) -> Counter[str]:
    """Requests to the store, by PUT, GET and so on."""
    verbs: Counter[str] = Counter()
    for kind, count in requests.items():
        verbs[kind.verb] += count
    return verbs


def by_object(requests: Counter[RequestKind]) -> Counter[str]:
    """Requests to the store by what they are about, numbers left out."""
    objects: Counter[str] = Counter()
    for kind, count in requests.items():
        name = re.sub(r"[0-9-]+(?=\.)", "*", kind.name)
        missing = {404: " (absent)", 412: " (refused)"}.get(kind.status, "")
        objects[f"{kind.verb} {name}{missing}"] += count
    return objects


def shares(counts: Mapping[str, float], parts: float) -> dict[str, float]:
    """Each count divided, most first."""
    rows = sorted(counts.items(), key=lambda row: -row[1])
    return {name: round(count / parts, 4) for name, count in rows}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and maximum, rounded."""
    return {"median": round(statistics.median(values), 1), "max": round(max(values), 1)}


def memory_of(pids: Sequence[int]) -> dict[str, dict[str, float]]:
    """Spread of RSS and PSS, MiB."""
    found = processes.memory(pids)
    return {"rss": spread([m.rss for m in found]), "pss": spread([m.pss for m in found])}


def of_broker(
    empty: BrokerLoad | None, load: BrokerLoad | None, workers: int
) -> dict[str, float] | None:
    """What the workers hold open at the broker, which was `empty` without them."""
    if empty is None or load is None:
        return None
    return {
        "connections_per_worker": load.connections / workers,
        "channels_per_worker": load.channels / workers,
        "consumers_per_worker": load.consumers / workers,
        "erlang_processes_per_worker": round((load.processes - empty.processes) / workers, 1),
        "queues": load.queues,
        "kib_per_connection": round(load.connection_bytes / load.connections / 1024, 1),
        "kib_per_queue": round(load.queue_bytes / load.queues / 1024, 1),
    }


def of_period(period: Period, workers: int) -> dict[str, Any]:
    """Load of one worker in a minute of a phase."""
    minutes = workers * period.seconds / 60
    return {
        "store_requests": shares(by_object(period.requests), minutes),
        "webhooks": shares(period.webhooks, minutes),
        "broker_messages": shares(period.messages, minutes),
        "broker_packets": round(period.packets / minutes, 2),
        "cpu_seconds": shares(period.cpu_seconds, minutes),
    }


def of_jobs(period: Period, jobs: int) -> dict[str, Any]:
    """Load of one drained job."""
    return {
        "store_requests": shares(by_verb(period.requests), jobs),
        "store_requests_total": round(period.requests.total() / jobs, 2),
        "store_objects": shares(by_object(period.requests), jobs),
        "broker_messages": shares(period.messages, jobs),
        "broker_packets": round(period.packets / jobs, 1),
        "webhooks": shares(period.webhooks, jobs),
        "cpu_milliseconds": shares({n: 1000 * s for n, s in period.cpu_seconds.items()}, jobs),
    }


def show(title: str, figures: Mapping[str, Any], indent: int = 0) -> None:
    """Print a table."""
    print(f"{'  ' * indent}{title}")
    for name, value in figures.items():
        if isinstance(value, Mapping):
            show(name, value, indent + 1)
        else:
            print(f"{'  ' * (indent + 1)}{name:<{36 - 2 * indent}}{value}")


def measure(crowd: Crowd, options: argparse.Namespace) -> dict[str, Any]:
    """All phases; the figures."""
    crowd.put_pictures(options.pictures)
    empty = crowd.moment().broker
    began = time.monotonic()
    crowd.start_workers(options.workers)
    up_seconds = time.monotonic() - began
    print(f"{options.workers} workers up in {up_seconds:.1f} s", flush=True)
    time.sleep(SETTLE_SECONDS)
    waiting, fresh = crowd.moment().broker, memory_of(crowd.pids)
    idle = rest(crowd, options.idle_seconds)
    short = [f"short-{number}" for number in range(options.jobs)]
    drained = drain(crowd, short, options.pictures, options.patience_seconds)
    busy, used = crowd.moment().broker, memory_of(crowd.pids)
    threads = spread([processes.threads(pid) for pid in crowd.pids])
    trainers = memory_of(processes.children(crowd.pids))
    long = [f"long-{number}" for number in range(options.workers)]
    training = train(crowd, long, options.pictures, options.training_seconds)
    return {
        "workers": options.workers,
        "jobs": options.jobs,
        "pictures_per_job": options.pictures,
        "seconds": round(drained.seconds, 1),
        "jobs_per_second": round(options.jobs / drained.seconds, 2),
        "supervisor_mib_at_start": fresh,
        "supervisor_mib": used,
        "supervisor_threads": threads,
        "trainer_mib": trainers,
        "broker_waiting": of_broker(empty, waiting, options.workers),
        "broker_after_jobs": of_broker(empty, busy, options.workers),
        "per_job": of_jobs(drained, options.jobs),
        "per_worker_minute_waiting": of_period(idle, options.workers),
        "per_worker_minute_training": of_period(training, options.workers),
        "warnings": dict(log_events(crowd.workers, "warning")),
        "errors": dict(log_events(crowd.workers, "error")),
        **account([*short, *long], crowd.result_keys(), crowd.heard.ends),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--pictures", type=int, default=1, help="in each job")
    parser.add_argument("--idle-seconds", type=float, default=30)
    parser.add_argument("--training-seconds", type=float, default=60)
    parser.add_argument("--patience-seconds", type=float, default=900, help="for the drain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, gathered(Path(folder)) as crowd:
        figures = measure(crowd, options)
    show("figures", figures)
    print(json.dumps(figures))
    return 1 if any(figures[name] for name in ("lost", "duplicated", "retrained")) else 0


if __name__ == "__main__":
    sys.exit(main())
