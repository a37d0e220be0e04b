"""Twenty jobs through docker-compose.yml while containers die: `python -m tests.compose`.

Two workers with the real trainer; in the middle of a job one is killed (and started again, as an
orchestrator does), and one is paused until another has its job. Then the three journals are
compared: what was published, what is stored, what was received. Needs Docker with compose, and
nothing else of this machine. Prints one JSON line; ends with 0 if nothing was lost or done twice.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.compose.stack import ROOT, SECRETS, Stack, docker
from tests.faults.checker import Counts, Published, Stored, check, leaks
from tests.live_worker import eventually

WORKERS = 2

#: A job is in its middle from here on, percent.
MIDDLE_PERCENT = 5

#: What of the checker's table a look from outside can tell.
TOLD = (
    *("published", "committed", "failed", "lost", "duplicated", "contradicting", "leaked"),
    *("progress_after_terminal", "progress_backwards", "waiting", "terminal_seen_twice"),
)

#: How long anything may take, seconds; a busy machine takes its time.
PATIENCE_SECONDS = 3600.0

#: Time between two looks, seconds.
LOOK_SECONDS = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--no-build", action="store_true", help="take the image that is there")
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--logs", type=Path, help="file for the logs of all containers")
    asked = parser.parse_args()
    stack = Stack("lora-worker-check", asked.jobs)
    began = time.monotonic()
    try:
        build = () if asked.no_build else ("--build",)
        stack.compose("up", "-d", *build, "--scale", f"worker={WORKERS}")
        found = {**_play(stack), "seconds": round(time.monotonic() - began)}
    finally:
        if asked.logs:
            asked.logs.write_text(stack.compose("logs", "--timestamps"))
        if not asked.keep:
            stack.compose("down", "--volumes", "--timeout", "10")
    print(json.dumps(found))
    return 0 if found["clean"] else 1


def _play(stack: Stack) -> dict[str, Any]:
    jobs = stack.published()
    scaler_saw = _until(lambda: _seen_by_scaler(stack) == len(jobs) and len(jobs), "KEDA's count")
    first, second = stack.workers()
    killed = _until(lambda: _in_the_middle(stack, first), "the first worker trains")
    docker("kill", first)
    docker("start", first)
    _say(f"killed in the middle of {killed}")
    _until(lambda: stack.prometheus('sum(up{job="lora-worker"})') == WORKERS, "both are scraped")

    paused = _until(lambda: _in_the_middle(stack, second), "the second worker trains")
    docker("pause", second)
    at = time.monotonic()
    _say(f"paused in the middle of {paused}")
    _until(lambda: not _holds(stack, second, paused), "another worker takes the job over")
    docker("unpause", second)
    paused_seconds = round(time.monotonic() - at)
    _say(f"resumed after {paused_seconds} s")

    _until(lambda: len(stack.objects("/delivered.json")) >= len(jobs), "all are told")
    _until(lambda: not any(_waiting(stack).values()), "all queues are empty")
    log = stack.worker_log()
    counts = _compare(stack, jobs, log)
    epochs = {job_id: lease["epoch"] for job_id, lease in stack.leases().items()}
    clean = counts.clean and counts.committed == len(jobs)
    return {
        **{name: getattr(counts, name) for name in TOLD},
        "killed_job_epochs": epochs[killed],
        "paused_job_epochs": epochs[paused],
        "paused_seconds": paused_seconds,
        "noticed_by_the_paused": log.count('"event": "job_was_taken_over"'),
        "folders_swept": log.count('"event": "job_folders_swept"'),
        "scaler_saw": scaler_saw,
        "clean": clean and epochs[killed] > 1 and epochs[paused] > 1,
    }


def _compare(stack: Stack, jobs: list[str], log: str) -> Counts:
    objects, arrivals = stack.objects(), stack.arrivals()
    waiting = sum(_waiting(stack).values())
    counts = check(
        [Published(job_id) for job_id in jobs], Stored(objects, waiting=waiting), arrivals
    )
    for place in leaks(SECRETS, {**objects, "the workers' log": log.encode()}):
        counts.blame("leaked", place)
    for finding in counts.findings:
        _say(finding)
    return counts


def _in_the_middle(stack: Stack, container: str) -> str | None:
    """The job that this container trains, if it is well under way and not done."""
    for job_id, lease in stack.leases().items():
        if _is_of(lease, container) and MIDDLE_PERCENT <= lease["percent"] < 95:
            return job_id
    return None


def _holds(stack: Stack, container: str, job_id: str) -> bool:
    return _is_of(stack.leases()[job_id], container)


def _is_of(lease: dict[str, Any], container: str) -> bool:
    """An owner's name begins with its host's, which is the container's short id."""
    return bool(lease["owner"].startswith(container[:12]) and lease["state"] == "held")


def _waiting(stack: Stack) -> dict[str, int]:
    return {name: count for name, count in stack.queues().items() if count}


def _seen_by_scaler(stack: Stack) -> int:
    """What KEDA counts with the trigger of the manifests."""
    manifest = ROOT / "config" / "kubernetes" / "overlays" / "one-shot" / "scaled-job.yaml"
    trigger = yaml.safe_load(manifest.read_text())["spec"]["triggers"][0]["metadata"]
    wanted = re.compile(trigger["queueName"])
    return sum(count for name, count in stack.queues().items() if wanted.search(name))


def _until(condition: Callable[[], Any], what: str) -> Any:
    return eventually(
        partial(_tried, condition), what, PATIENCE_SECONDS, every_seconds=LOOK_SECONDS
    )


def _tried(condition: Callable[[], Any]) -> Any:
    """Servers that start, and commands on a busy machine, may fail once."""
    try:
        return condition()
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"not yet: {type(error).__name__}")
        return None


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
