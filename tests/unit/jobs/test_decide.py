"""The table of what is done with a delivered job, row by row."""

import pytest

from worker.contract.errors import ErrorCode
from worker.jobs.decide import (
    Claim,
    CommitCanceled,
    GiveUp,
    Park,
    Refuse,
    RepeatTerminal,
    Snapshot,
    decide,
    trains_alone,
)
from worker.jobs.record import LastError, Lease, Result

TERM = 180.0


def lease(**fields):
    return Lease(**{"owner": "a", "epoch": 1, "fingerprint": "f", **fields})


RESULT = Result(
    outcome="completed",
    epoch=1,
    fingerprint="f",
    job_id="j",
    style_id=1,
    event="complete",
    event_body="{}",
    webhook_base=None,
)
FAILURE = LastError(code=ErrorCode.GPU_OUT_OF_MEMORY, message="too big")


@pytest.mark.parametrize(
    ("found", "action"),
    [
        # nothing there: a new job
        (Snapshot(), Claim(epoch=1, attempts=1)),
        # it has ended
        (Snapshot(result=RESULT), RepeatTerminal(say_again=True)),
        (Snapshot(result=RESULT, announced=True), RepeatTerminal(say_again=False)),
        (Snapshot(result=RESULT, announced=True, lease=lease()), RepeatTerminal(say_again=False)),
        # it has ended, and its worker is about to announce it, or is gone
        (Snapshot(result=RESULT, lease=lease(), lease_age_seconds=1), Park()),
        (
            Snapshot(result=RESULT, lease=lease(), lease_age_seconds=TERM),
            RepeatTerminal(say_again=True),
        ),
        (Snapshot(result=RESULT, lease=lease(state="released")), RepeatTerminal(say_again=True)),
        # somebody works on it
        (Snapshot(lease=lease(), lease_age_seconds=0), Park()),
        (Snapshot(lease=lease(), lease_age_seconds=TERM - 1), Park()),
        (Snapshot(lease=lease(), lease_age_seconds=1, canceled=True), Park()),
        # its worker was lost
        (Snapshot(lease=lease(), lease_age_seconds=TERM), Claim(epoch=2, attempts=2)),
        (Snapshot(lease=lease(attempts=3), lease_age_seconds=TERM, checkpoint_step=5), Claim(2, 1)),
        # its worker stopped in order: not an attempt
        (Snapshot(lease=lease(state="released", attempts=3)), Claim(epoch=2, attempts=3)),
        # it failed with something that may pass
        (Snapshot(lease=lease(state="failed", attempts=2, error=FAILURE)), Claim(2, 3)),
        # too often without progress
        (
            Snapshot(lease=lease(state="failed", epoch=7, attempts=3, error=FAILURE)),
            GiveUp(8, ErrorCode.GPU_OUT_OF_MEMORY, "too big"),
        ),
        # progress between attempts resets the count
        (
            Snapshot(lease=lease(state="failed", epoch=7, attempts=3, step=5), checkpoint_step=6),
            Claim(8, 1),
        ),
        # canceled while nobody works on it
        (Snapshot(canceled=True), CommitCanceled(epoch=1)),
        (Snapshot(canceled=True, lease=lease(), lease_age_seconds=TERM), CommitCanceled(epoch=2)),
    ],
)
def test_what_is_found_decides_what_is_done(found, action):
    assert decide(found, fingerprint="f", lease_term_seconds=TERM, max_attempts=3) == action


def test_a_job_whose_worker_died_too_often_is_given_up_as_crashed():
    found = Snapshot(lease=lease(attempts=3), lease_age_seconds=TERM)
    action = decide(found, fingerprint="f", lease_term_seconds=TERM, max_attempts=3)
    assert isinstance(action, GiveUp)
    assert action.code is ErrorCode.WORKER_CRASHED
    assert "started 3 times" in action.message


@pytest.mark.parametrize("found", [Snapshot(result=RESULT), Snapshot(lease=lease())])
def test_one_id_with_other_content_is_refused(found):
    action = decide(found, fingerprint="other", lease_term_seconds=TERM, max_attempts=3)
    assert isinstance(action, Refuse)
    assert "job_id" in action.message


@pytest.mark.parametrize(
    ("found", "age", "limit", "kind"),
    [
        (Snapshot(), 100.0, None, Claim),
        (Snapshot(), None, 60.0, Claim),
        (Snapshot(), 59.0, 60.0, Claim),
        (Snapshot(), 61.0, 60.0, GiveUp),
        (Snapshot(lease=lease(state="released")), 61.0, 60.0, Claim),
    ],
)
def test_a_job_that_nobody_began_in_time_is_given_up(found, age, limit, kind):
    action = decide(
        found,
        fingerprint="f",
        lease_term_seconds=TERM,
        max_attempts=3,
        age_seconds=age,
        max_age_seconds=limit,
    )
    assert isinstance(action, kind)
    if isinstance(action, GiveUp):
        assert action.code == ErrorCode.TIME_LIMIT_EXCEEDED


STORE_AWAY = LastError(code=ErrorCode.UPLOAD_FAILED, message="503")
CRASH = LastError(code=ErrorCode.WORKER_CRASHED, message="exit status 3")


@pytest.mark.parametrize(
    ("before", "attempts", "alone"),
    [
        (None, 1, False),
        # interrupted, or lost with its worker after it had made progress
        (lease(state="released"), 1, False),
        (lease(), 1, False),
        # no progress since: it may be what ends workers
        (lease(), 2, True),
        (lease(state="released", attempts=2), 2, True),
        # its trainer ended in the last attempt, however far that had come
        (lease(state="failed", error=CRASH), 2, True),
        (lease(state="failed", error=CRASH), 1, True),
        (lease(state="failed", error=FAILURE), 1, True),
        # something else failed that may pass
        (lease(state="failed", error=STORE_AWAY), 1, False),
    ],
)
def test_what_may_have_ended_its_trainer_is_trained_beside_no_other(before, attempts, alone):
    assert trains_alone(before, attempts) is alone
