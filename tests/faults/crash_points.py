"""Kind 1: the process is killed before and after every side effect of a job."""

from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, scene
from tests.faults.tracing import Point, has_effect, publish_job

#: A kill may cost the steps since the last checkpoint and those made while that one was stored.
MOST_STEPS_REDONE = 8


def cases(points: Sequence[Point]) -> Iterator[Case]:
    for process, point, n in points:
        for side in ("before", "after"):
            fault = Fault(process, "kill", side, point, n)
            if has_effect(point):
                yield Case("crash point", str(fault), partial(_play, fault=fault))


def _play(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        publish_job(played)
        worker = played.strike(fault)
        if fault.process == "supervisor":
            worker.wait()
            played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        expect(counts, counts.steps_redone <= MOST_STEPS_REDONE, f"{counts.steps_redone} redone")
        return counts
