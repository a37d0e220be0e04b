"""Kind 12: several jobs share one trainer while something happens to it, to the worker, or to one.

The fault strikes where the second of them passes. The stand-in trainer ends with `NOT_ALLOWED` if
it is given a job beside one that it may not share with.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from tests import standin_trainer as standin
from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.crash_points import MOST_STEPS_REDONE
from tests.faults.failpoints import Action, Fault
from tests.faults.scene import Lab, Scene, scene, wait
from tests.faults.tracing import Point, has_effect, publish_job
from tests.faults.zombies import HARM_SECONDS
from tests.live_worker import eventually

_KIND = "packed"

_JOBS = 4

#: Steps slow enough for jobs of eight of them to meet.
_SETTINGS = {"PACK_SLOTS": str(_JOBS), "STEP_SECONDS": "0.15"}

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
    yield Case(_KIND, "undisturbed", _undisturbed)
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


def _publish(played: Scene, jobs: int = _JOBS) -> None:
    for number in range(jobs):
        publish_job(played, style_id=10 + number)


def _finish(played: Scene, jobs: int = _JOBS) -> Counts:
    counts = played.finish()
    expect(counts, counts.committed == jobs, f"{counts.committed} of {jobs} are completed")
    for worker in played.workers:
        status = {line["status"] for line in worker.log("trainer_ended")}
        refused = standin.NOT_ALLOWED in status
        expect(counts, not refused, "the trainer was given a job beside one that may not share")
    return counts


def _undisturbed(lab: Lab) -> Counts:
    with scene(lab, **_SETTINGS) as played:
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
    with scene(lab, **_SETTINGS) as played:
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
    with scene(lab, **_SETTINGS) as played:
        _publish(played)
        zombie = played.strike(fault)
        played.start()
        played.wait_for_ends()
        zombie.signal(signal.SIGCONT)
        wait(HARM_SECONDS)
        return _finish(played)


def _poison(lab: Lab, style_id: int, code: str) -> Counts:
    """It fails as it would alone; its neighbours are completed, by a worker that outlives it."""
    with scene(lab, **_SETTINGS) as played:
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


def _met(played: Scene) -> bool:
    """Whether steps of one job lie between steps of another."""
    order = [job_id for job_id, _ in played.trained_steps()]
    blocks = [a for a, b in zip(order, [*order[1:], None], strict=True) if a != b]
    return len(blocks) > len(set(blocks))
