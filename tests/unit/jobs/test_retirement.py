"""When a worker ends by itself."""

import itertools

import pytest

from worker.jobs import retirement
from worker.jobs.quota import JobQuota
from worker.jobs.retirement import Retirement, RunLimits


class Consumer:
    """Whether it works is said by the test."""

    def __init__(self, *, working=False, idle_seconds=0.0):
        self.working, self.idle_seconds, self.stopped = working, idle_seconds, False

    def stop_consuming(self):
        self.stopped = True


def used_up(jobs=1):
    quota = JobQuota(jobs)
    for _ in range(jobs):
        quota.reserve()
        quota.begin()
    return quota


def of(limits, quota=None, *, jobs=None, events=None, left=lambda: 0, stop=lambda seconds: False):
    return Retirement(
        limits,
        quota or JobQuota(limits.max_jobs),
        jobs=jobs or Consumer(),
        events=events or Consumer(),
        events_left=left,
        stop_within=stop,
    )


@pytest.mark.parametrize(
    ("limits", "quota", "working", "idle", "reason"),
    [
        (RunLimits(max_jobs=1), used_up(), False, 0, "max_jobs"),
        (RunLimits(max_jobs=1), used_up(), True, 0, None),  # it stores what it trained
        (RunLimits(max_jobs=2), used_up(1), False, 0, None),
        (RunLimits(idle_seconds=60), None, False, 61, "idle"),
        (RunLimits(idle_seconds=60), None, False, 59, None),
        (RunLimits(max_jobs=1, idle_seconds=60), None, False, 61, "idle"),
        (RunLimits(), None, False, 10_000, None),
    ],
)
def test_which_limit_is_met(limits, quota, working, idle, reason):
    if limits.max_jobs == 2:
        quota = JobQuota(2)
        quota.reserve()
        quota.begin()
    consumers = {
        "jobs": Consumer(working=working, idle_seconds=idle),
        "events": Consumer(idle_seconds=idle),
    }
    assert of(limits, quota, **consumers).reason() == reason


def test_a_worker_that_sends_events_is_not_idle():
    limits = RunLimits(idle_seconds=60)
    busy = of(limits, jobs=Consumer(idle_seconds=500), events=Consumer(idle_seconds=2))
    assert busy.reason() is None


def test_without_limits_the_worker_waits_to_be_told():
    waits = []

    def stop(seconds):
        waits.append(seconds)
        return True

    of(RunLimits(), stop=stop).wait()
    assert waits == [None]


def test_what_was_announced_is_sent_before_the_end():
    left = itertools.chain([3, 1, None], itertools.repeat(0))
    jobs, asked = Consumer(), []

    def events_left():
        asked.append(1)
        return next(left)

    of(RunLimits(max_jobs=1), used_up(), jobs=jobs, left=events_left).wait()
    assert jobs.stopped
    assert len(asked) == 5  # three that were not zero, two quiet looks


def test_events_that_never_end_do_not_keep_the_worker(mocker):
    mocker.patch.object(retirement.time, "monotonic", side_effect=itertools.count(step=5))
    of(RunLimits(max_jobs=1), used_up(), left=lambda: 7).wait()


def test_a_job_that_came_at_the_last_moment_is_worked_on():
    jobs = Consumer(idle_seconds=100)
    looks = []

    def stop(seconds):
        looks.append(jobs.working)
        if jobs.stopped and len(looks) > 3:
            jobs.working = False
        return False

    original = jobs.stop_consuming

    def stop_consuming():
        original()
        jobs.working = True

    jobs.stop_consuming = stop_consuming
    of(RunLimits(idle_seconds=60), jobs=jobs, events=Consumer(idle_seconds=99), stop=stop).wait()
    assert looks.count(True) >= 2
    assert not jobs.working


def test_whoever_is_told_to_stop_does_not_look_any_further():
    jobs = Consumer(idle_seconds=100)
    of(RunLimits(idle_seconds=60), jobs=jobs, stop=lambda seconds: True).wait()
    assert not jobs.stopped
