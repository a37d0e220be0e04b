"""Kind 4: a worker stands still until another has its job, or has finished it, and then goes on."""

import signal
from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import PATIENCE_SECONDS, Lab, scene, wait
from tests.faults.tracing import Point, has_effect, publish_job
from tests.live_worker import eventually

#: Time in which a zombie would have done its harm, seconds.
HARM_SECONDS = 2.0

#: What a worker that was replaced does about a job that another trains, and how often it leaves
#: checkpoints: some steps must be left for its successor.
_WHILE_IT_TRAINS = {
    "webhook progress": "2",
    "store.write lease": "2",
    "store.upload checkpoint-file": "2",
    "store.write checkpoint": "2",
    "store.upload output-file": "5",
    "store.write result": "5",
}

#: So that the zombie wakes long before its successor is done, seconds a step.
_SLOW_STEPS = {"STEP_SECONDS": "1", "PROGRESS_INTERVAL_SECONDS": "0.5"}


def cases(points: Sequence[Point]) -> Iterator[Case]:
    for process, point, n in points:
        if process == "supervisor" and has_effect(point):
            fault = Fault(process, "stop", "before", point, n)
            yield Case("zombie", str(fault), partial(_play, fault=fault))
            if point in _WHILE_IT_TRAINS:
                name = f"{fault}, until another trains"
                yield Case("zombie", name, partial(_play_beside, fault=fault))


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


def _play_beside(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        job_id = publish_job(played)
        zombie = played.strike(fault, CHECKPOINT_STEPS=_WHILE_IT_TRAINS[fault.point])
        epoch = played.lease_epoch(job_id)
        played.start(**_SLOW_STEPS)
        taken_over = "another has the job"
        eventually(lambda: played.lease_epoch(job_id) > epoch, taken_over, PATIENCE_SECONDS)
        zombie.signal(signal.SIGCONT)
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts
