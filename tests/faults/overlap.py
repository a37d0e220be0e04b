"""Kind 11: one job trains while another comes or goes, and then something happens to the worker.

Three jobs wait, and the fault strikes where the second one passes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.crash_points import MOST_STEPS_REDONE
from tests.faults.failpoints import Action, Fault
from tests.faults.scene import Lab, scene
from tests.faults.tracing import Point, has_effect, publish_job

_JOBS = 3


def cases(points: Sequence[Point]) -> Iterator[Case]:
    passages = Counter(point for process, point, _ in points if process == "supervisor")
    actions: tuple[Action, ...] = ("kill", "term")
    for point, count in passages.items():
        for action in actions:
            if has_effect(point):
                fault = Fault("supervisor", action, "before", point, count + 1)
                yield Case("overlap", str(fault), partial(_play, fault=fault))


def _play(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        for number in range(_JOBS):
            publish_job(played, style_id=10 + number)
        status = played.strike(fault).wait()
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == _JOBS, f"{counts.committed} of {_JOBS} are completed")
        if fault.action == "term":
            expect(counts, status == 0, f"exit status {status}")
            expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        else:
            most = 2 * MOST_STEPS_REDONE
            expect(counts, counts.steps_redone <= most, f"{counts.steps_redone} redone")
        return counts
