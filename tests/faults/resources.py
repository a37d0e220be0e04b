"""Kind 7: what runs out or breaks under a job: disk, memory, numbers, patience.

Whatever happens to the first job, the second one of the same worker must be done.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from tests import standin_trainer as standin
from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, Scene, scene
from tests.faults.tracing import publish_job
from tests.live_worker import LiveWorker, eventually

_KIND = "resource"

#: The next job begins so soon after one that failed, seconds.
MOST_PAUSE_SECONDS = 30.0

#: What becomes of a job with such a style: the code of its failure.
_STYLES = {
    "the trainer exits at once": (standin.CRASHES, "WORKER_CRASHED"),
    "the trainer segfaults": (standin.SEGFAULTS, "WORKER_CRASHED"),
    "CUDA out of memory": (standin.OUT_OF_MEMORY, "GPU_OUT_OF_MEMORY"),
    "the loss is not a number": (standin.DIVERGES, "NON_FINITE_LOSS"),
    "a step hangs": (standin.HANGS_LATER, "WORKER_CRASHED"),
}

#: Where the disk is full.
_FULL = ("checkpoint-write", "checkpoint-rename", "export-write")


def cases() -> Iterator[Case]:
    for name, (style_id, code) in _STYLES.items():
        yield Case(_KIND, name, partial(_bad_job, style_id=style_id, code=code))
    yield Case(_KIND, "the trainer is killed for its memory", _killed_for_memory)
    for point in _FULL:
        fault = Fault("trainer", "no_space", "before", point)
        yield Case(_KIND, str(fault), partial(_no_space, fault=fault))
    for point in ("store.download picture", "store.upload checkpoint-file"):
        fault = Fault("supervisor", "no_space", "before", point)
        yield Case(_KIND, str(fault), partial(_no_space, fault=fault))
    if os.geteuid() == 0 and _can_mount():
        yield Case(_KIND, "a disk of 1 MiB", _tiny_disk)


def _bad_job(lab: Lab, style_id: int, code: str) -> Counts:
    with scene(lab) as played:
        worker = played.start()
        bad = played.publish(style_id=style_id)
        played.publish()
        played.wait_for_ends()
        counts = played.finish()
        end = next(one for one in played.arrivals if one.terminal and one.job_id == bad)
        expect(counts, code.encode() in end.body, f"it ended with {end.body!r}")
        expect(counts, counts.committed == 1, "the next job is not completed")
        expect(counts, worker.process.returncode == 0, "the worker did not outlive it")
        pause = _pause_seconds(worker, after=bad)
        expect(counts, pause < MOST_PAUSE_SECONDS, f"the next job began {pause:.1f} s later")
        return counts


def _pause_seconds(worker: LiveWorker, after: str) -> float:
    """From the first failure of a job to the next time that the worker took up another."""
    failed = next(line for line in worker.log("job_failed") if line["job_id"] == after)
    moments = [
        datetime.fromisoformat(line["timestamp"])
        for line in worker.log("job_taken_up")
        if line["job_id"] != after
    ]
    return (moments[0] - datetime.fromisoformat(failed["timestamp"])).total_seconds()


def _killed_for_memory(lab: Lab) -> Counts:
    """The kernel's way: SIGKILL to the trainer alone."""
    with scene(lab) as played:
        worker = played.start()
        publish_job(played)
        played.publish()
        trainer = worker.wait_for_log("trainer_started")["pid"]
        eventually(lambda: len(played.trained_steps()) >= 3, "the training has begun")
        os.kill(trainer, signal.SIGKILL)
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 2, f"{counts.committed} of 2 jobs are completed")
        return counts


def _no_space(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        publish_job(played)
        played.publish()
        played.strike(fault)
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 2, f"{counts.committed} of 2 jobs are completed")
        return counts


def _tiny_disk(lab: Lab) -> Counts:
    """A worker whose disk is full puts its jobs off; one with room does them."""
    with scene(lab) as played:
        small = _mount(played, "1m")
        try:
            publish_job(played)
            full = played.start(WORK_DIR=str(small))
            full.wait_for_log("job_failed")
            full.signal()
            played.start()
            played.wait_for_ends()
            counts = played.finish()
            expect(counts, counts.committed == 1, "the job is not completed")
            return counts
        finally:
            subprocess.run(["umount", str(small)], check=True)


def _mount(played: Scene, size: str) -> Path:
    folder = played.site.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    return folder


def _can_mount() -> bool:
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0
