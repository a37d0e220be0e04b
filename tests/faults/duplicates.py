"""Kind 9: one job sent several times, to several workers; one id for two jobs."""

from collections.abc import Iterator

from tests.faults.case import Case, expect
from tests.faults.checker import Counts, Published
from tests.faults.scene import Lab, scene

_KIND = "duplicate"


def cases() -> Iterator[Case]:
    yield Case(_KIND, "one message five times to three workers", _five_times)
    yield Case(_KIND, "one message again after its end", _again)
    yield Case(_KIND, "one job id with other parameters", _other_content)
    yield Case(_KIND, "a body without any id, twice at once", _without_id)


def _five_times(lab: Lab) -> Counts:
    with scene(lab) as played:
        for _ in range(3):
            played.start()
        for _ in range(3):
            played.publish(times=5, parameters={"max_train_steps": 20})
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 3, f"{counts.committed} of 3 jobs are completed")
        expect(counts, counts.terminal_seen_twice == 0, "an end was told twice")
        expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        return counts


def _again(lab: Lab) -> Counts:
    with scene(lab) as played:
        played.start()
        message = played.site.message()
        for _ in range(2):
            played.site.publish(message)
            played.published.append(Published(message["job_id"]))
            played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.terminal_seen_twice == 0, "an end was told twice")
        expect(counts, counts.steps_redone == 0, f"{counts.steps_redone} steps redone")
        return counts


def _other_content(lab: Lab) -> Counts:
    with scene(lab) as played:
        played.start()
        played.start()
        job_id = played.publish()
        played.wait_for_ends()
        played.publish(job_id=job_id, parameters={"max_train_steps": 3}, refused=True)
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the first job is not completed")
        expect(counts, counts.failed == 1, "the second was not refused")
        return counts


def _without_id(lab: Lab) -> Counts:
    """Both are the same job while it runs: one end, under the body's digest."""
    with scene(lab) as played:
        message = {k: v for k, v in played.site.message().items() if k != "job_id"}
        for _ in range(2):
            played.site.publish(message)
        played.start()
        played.start()
        played.receiver.wait_for(lambda got: any(one.event == "complete" for one in got), 60)
        job_id = next(one.job_id for one in played.arrivals if one.terminal)
        played.published += [Published(job_id)] * 2
        return played.finish()
