"""Kind 2: every call to the store, the broker and the receiver fails, once and for good.

A call fails before it had its effect, or after it, when only its answer is lost.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Action, Fault
from tests.faults.scene import Lab, scene, wait
from tests.faults.tracing import Point, has_effect, publish_job

#: How long a worker with a call that fails for good may suffer before it is replaced, seconds.
_SUFFERING_SECONDS = 1.5


def cases(points: Sequence[Point]) -> Iterator[Case]:
    for process, point, n in points:
        if process != "supervisor":
            continue
        ways: list[tuple[Action, str]] = [("fail", "before")]
        if has_effect(point):
            ways.append(("fail", "after"))
        if n == 1:
            ways.append(("fail_for_good", "before"))
        for action, side in ways:
            fault = Fault(process, action, side, point, n)
            play = _once if action == "fail" else _for_good
            yield Case("failing call", str(fault), partial(play, fault=fault))


def _once(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        publish_job(played)
        played.strike(fault)
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts


def _for_good(lab: Lab, fault: Fault) -> Counts:
    """The worker is of no use any more; the one that takes its place finds everything."""
    with scene(lab) as played:
        publish_job(played)
        broken = played.strike(fault)
        wait(_SUFFERING_SECONDS)
        broken.signal()
        played.start()
        played.wait_for_ends()
        return played.finish()
