"""Kind 12: several jobs share one trainer while something happens to it, to the worker, or to one.

The fault strikes where the second of them passes. The stand-in trainer ends with `NOT_ALLOWED` if
it is given a job beside one that it may not share with.
"""

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import safetensors.numpy

from tests import standin_trainer as standin
from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.crash_points import MOST_STEPS_REDONE
from tests.faults.failpoints import Action, Fault, Process
from tests.faults.scene import Lab, Scene, scene, wait
from tests.faults.tracing import Point, has_effect, publish_job
from tests.faults.zombies import HARM_SECONDS
from tests.live_worker import eventually

_KIND = "packed"

_JOBS = 4

#: Short jobs meet because one that is alone waits for another.
_SETTINGS = {"PACK_SLOTS": str(_JOBS), "PACK_WAIT_SECONDS": "8", "STEP_SECONDS": "0.15"}

#: What may depend on the trainer.
_REAL: tuple[tuple[Process, str], ...] = (
    *(("trainer", point) for point in ("step", "checkpoint-rename", "export", "finished-event")),
    *(("supervisor", point) for point in ("store.write checkpoint", "store.write result")),
)

#: Largest difference of a weight that comes from another order of sums in fp32.
_TOLERANCE = 5e-5

#: What a trainer passes once in its life.
_ONCE = "say ready"

#: Where a worker stands still until another one has done its jobs.
_ZOMBIES = ("store.write checkpoint", "store.write result", "webhook complete")

#: What becomes of a job with such a style.
_POISONS = {
    "exits": (standin.CRASHES, "WORKER_CRASHED"),
    "segfaults": (standin.SEGFAULTS, "WORKER_CRASHED"),
    "runs out of memory": (standin.OUT_OF_MEMORY, "GPU_OUT_OF_MEMORY"),
    "diverges": (standin.DIVERGES, "NON_FINITE_LOSS"),
    "hangs in a step": (standin.HANGS_LATER, "WORKER_CRASHED"),
}


def cases(points: Sequence[Point]) -> Iterator[Case]:
    yield Case(_KIND, "undisturbed", _undisturbed, alone=True)
    for name, (style_id, code) in _POISONS.items():
        yield Case(_KIND, f"one of them {name}", partial(_poison, style_id=style_id, code=code))
    passages = Counter((process, point) for process, point, _ in points)
    for (process, point), count in passages.items():
        if not has_effect(point) or point == _ONCE:
            continue
        actions: tuple[Action, ...] = ("kill", "term") if process == "supervisor" else ("kill",)
        for action in actions:
            fault = Fault(process, action, "before", point, count + 1)
            yield Case(_KIND, str(fault), partial(_struck, fault=fault))
        if point in _ZOMBIES:
            fault = Fault(process, "stop", "before", point, count + 1)
            yield Case(_KIND, str(fault), partial(_zombie, fault=fault))


def real_cases(points: Sequence[Point]) -> Iterator[Case]:
    """Some of them with the real trainer."""
    yield Case(_KIND, "undisturbed", _undisturbed, alone=True)
    counted = Counter((process, point) for process, point, _ in points)
    for process, point in _REAL:
        actions: tuple[Action, ...] = ("kill", "term") if process == "supervisor" else ("kill",)
        for action in actions:
            fault = Fault(process, action, "before", point, counted[process, point] + 1)
            yield Case(_KIND, str(fault), partial(_struck, fault=fault))


def _publish(played: Scene, jobs: int = _JOBS) -> None:
    for number in range(jobs):
        publish_job(played, style_id=10 + number)


def _finish(played: Scene, jobs: int = _JOBS) -> Counts:
    counts = played.finish()
    expect(counts, counts.committed == jobs, f"{counts.committed} of {jobs} are completed")
    if played.real and played.real.adapter:
        for digest, adapter in played.adapters(played.site.objects("models/")).items():
            gap = _largest_difference(adapter, played.real.adapter)
            expect(counts, gap <= _TOLERANCE, f"the adapter {digest[:12]} is {gap} off")
    for worker in played.workers:
        status = {line["status"] for line in worker.log("trainer_ended")}
        refused = standin.NOT_ALLOWED in status
        expect(counts, not refused, "the trainer was given a job beside one that may not share")
    return counts


def _scene(lab: Lab) -> AbstractContextManager[Scene]:
    """One in which workers have a trainer of several jobs."""
    # Their sums are in another order than those of the undisturbed job: no digest is expected.
    real = replace(lab.real, adapter_sha256=None) if lab.real else None
    return scene(replace(lab, real=real), **_SETTINGS)


def _undisturbed(lab: Lab) -> Counts:
    with _scene(lab) as played:
        _publish(played)
        worker = played.start()
        played.wait_for_ends()
        counts = _finish(played)
        expect(counts, _met(played), "no two jobs have met at the trainer")
        expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        trainers = worker.log("trainer_started")
        expect(counts, len(trainers) == 1, f"{len(trainers)} trainers for jobs that went well")
        return counts


def _struck(lab: Lab, fault: Fault) -> Counts:
    with _scene(lab) as played:
        _publish(played)
        worker = played.strike(fault)
        if fault.process == "supervisor":
            status = worker.wait()
            played.start()
        played.wait_for_ends()
        counts = _finish(played)
        if fault.action == "term":
            expect(counts, status == 0, f"exit status {status}")
            expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        else:
            most = _JOBS * MOST_STEPS_REDONE
            expect(counts, counts.steps_redone <= most, f"{counts.steps_redone} redone")
        return counts


def _zombie(lab: Lab, fault: Fault) -> Counts:
    with _scene(lab) as played:
        _publish(played)
        zombie = played.strike(fault)
        played.start()
        played.wait_for_ends()
        zombie.signal(signal.SIGCONT)
        wait(HARM_SECONDS)
        return _finish(played)


def _poison(lab: Lab, style_id: int, code: str) -> Counts:
    """It fails as it would alone; its neighbours are completed, by a worker that outlives it."""
    with _scene(lab) as played:
        worker = played.start()
        neighbours = _JOBS - 1
        _publish(played, neighbours)
        eventually(lambda: len(played.trained_steps()) > 2, "the training has begun")
        bad = played.publish(style_id=style_id)
        played.wait_for_ends()
        counts = _finish(played, neighbours)
        end = next(one for one in played.arrivals if one.terminal and one.job_id == bad)
        expect(counts, code.encode() in end.body, f"it ended with {end.body!r}")
        expect(counts, worker.process.returncode == 0, "the worker did not outlive it")
        failed = {line["job_id"] for line in worker.log("job_failed")}
        alone = code != "WORKER_CRASHED"
        expect(counts, not alone or failed == {bad}, "it took its neighbours with it")
        return counts


def _largest_difference(one: bytes, other: bytes) -> float:
    mine, theirs = safetensors.numpy.load(one), safetensors.numpy.load(other)
    if mine.keys() != theirs.keys():
        return float("inf")
    return max(float(np.abs(mine[name] - theirs[name]).max()) for name in mine)


def _met(played: Scene) -> bool:
    """Whether jobs shared passes; of the stand-in's, whether their steps alternate."""
    if played.real:
        ends = [json.loads(one.body) for one in played.arrivals if one.event == "complete"]
        return any(end["metadata"]["packing"]["mean_company"] > 1 for end in ends)
    order = [job_id for job_id, _ in played.trained_steps()]
    blocks = [a for a, b in zip(order, [*order[1:], None], strict=True) if a != b]
    return len(blocks) > len(set(blocks))
