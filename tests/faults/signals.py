"""Kind 8: SIGTERM at any moment: nothing is lost, and no step is made twice."""

import random
import signal
from collections.abc import Iterator
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, scene, wait
from tests.faults.tracing import publish_job
from tests.live_worker import eventually

#: Workers that are stopped one after the other while they work on one job.
INTERRUPTIONS = 10

#: Steps of that job: more than so many short-lived workers can make.
LONG = {"max_train_steps": 400}


def cases() -> Iterator[Case]:
    for seed in range(5):
        name = f"SIGTERM at {INTERRUPTIONS} random moments of one job, seed {seed}"
        yield Case("signal", name, partial(_random_moments, seed=seed))
    for seed in range(3):
        play = partial(_twice, seed=seed)
        yield Case("signal", f"SIGTERM twice, seed {seed}", play)
    yield from at_points()
    yield Case("signal", "SIGTERM while idle", _idle)


def at_points() -> Iterator[Case]:
    for point in ("store.upload output-file", "store.upload checkpoint-file", "store.write result"):
        for side in ("before", "after"):
            fault = Fault("supervisor", "term", side, point)
            yield Case("signal", str(fault), partial(_at_point, fault=fault))


def _random_moments(lab: Lab, seed: int) -> Counts:
    """Each worker is stopped within three seconds of its start, wherever it is by then."""
    moments = random.Random(seed)
    with scene(lab, STEP_SECONDS="0.02") as played:
        played.publish(parameters=LONG)
        statuses = []
        for _ in range(INTERRUPTIONS):
            worker = played.start()
            eventually(lambda worker=worker: worker.log("worker_starting"), "the worker starts")
            wait(moments.uniform(0, 2))
            worker.signal()
            statuses.append(worker.wait())
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        expect(counts, set(statuses) == {0}, f"exit statuses {statuses}")
        return counts


def _twice(lab: Lab, seed: int) -> Counts:
    with scene(lab) as played:
        played.publish(parameters={"max_train_steps": 60})
        worker = played.start()
        worker.wait_for_log("job_taken_up")
        wait(random.Random(seed).uniform(0.2, 1.0))
        worker.signal()
        worker.signal()
        worker.wait()
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts


def _at_point(lab: Lab, fault: Fault) -> Counts:
    with scene(lab) as played:
        publish_job(played)
        worker = played.strike(fault)
        expect_status = worker.wait()
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, expect_status == 0, f"exit status {expect_status}")
        expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        return counts


def _idle(lab: Lab) -> Counts:
    with scene(lab) as played:
        worker = played.start()
        worker.wait_for_log("broker_connected", count=3)
        worker.signal(signal.SIGTERM)
        status = worker.wait()
        publish_job(played)
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, status == 0, f"exit status {status}")
        return counts
