"""Kind 4: a worker stands still until another has finished its job, and then goes on."""

import signal
from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, scene, wait
from tests.faults.tracing import Point, has_effect, publish_job

#: Time in which a zombie would have done its harm, seconds.
HARM_SECONDS = 2.0


def cases(points: Sequence[Point]) -> Iterator[Case]:
    for process, point, n in points:
        if process == "supervisor" and has_effect(point):
            fault = Fault(process, "stop", "before", point, n)
            yield Case("zombie", str(fault), partial(_play, fault=fault))


def _play(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        job_id = publish_job(played)
        zombie = played.strike(fault)
        # The broker notices by the missing heartbeats.
        played.start()
        played.wait_for_ends()
        result = f"jobs/{job_id}/result.json"
        before = played.site.objects(result)
        zombie.signal(signal.SIGCONT)
        wait(HARM_SECONDS)
        counts = played.finish()
        expect(counts, played.site.objects(result) == before, "the result was overwritten")
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts
