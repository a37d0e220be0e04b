"""What is to be done with a delivered job? A table over what the store says, as a pure function."""

import json
from dataclasses import dataclass
from typing import Any

from worker.contract.errors import ErrorCode
from worker.jobs.record import Lease, Result

#: Errors after which a job is suspected of ending the trainers that it shares.
_ENDS_TRAINERS = frozenset({ErrorCode.WORKER_CRASHED, ErrorCode.GPU_OUT_OF_MEMORY})


@dataclass(frozen=True)
class Snapshot:
    """What the store holds about a job at one moment.

    Attributes:
        result: the committed end of the job, if it has ended.
        announced: the result's terminal event lies in the outbox.
        canceled: somebody left a tombstone.
        lease: the last claim.
        lease_age_seconds: time since the lease was written, by the store's clock.
        checkpoint_step: optimizer steps in the newest checkpoint, 0 without one.
    """

    result: Result | None = None
    announced: bool = False
    canceled: bool = False
    lease: Lease | None = None
    lease_age_seconds: float = 0.0
    checkpoint_step: int = 0


@dataclass(frozen=True)
class Claim:
    """Take the job with this epoch; `attempts` counts claims in a row without progress."""

    epoch: int
    attempts: int


@dataclass(frozen=True)
class Park:
    """Somebody works on it: look again later."""


@dataclass(frozen=True)
class RepeatTerminal:
    """It has ended: say so if its worker ended before it could, and forget the message."""

    say_again: bool


@dataclass(frozen=True)
class CommitCanceled:
    """It was canceled before anybody finished it."""

    epoch: int


@dataclass(frozen=True)
class GiveUp:
    """Too many attempts without progress."""

    epoch: int
    code: ErrorCode
    message: str


@dataclass(frozen=True)
class Refuse:
    """Another job already has this id: nothing may be said under it."""

    message: str


Action = Claim | Park | RepeatTerminal | CommitCanceled | GiveUp | Refuse


def is_owned(found: Snapshot, lease_term_seconds: float) -> bool:
    """Whether somebody holds the job and was heard of within the lease's term."""
    held = found.lease is not None and found.lease.state == "held"
    return held and found.lease_age_seconds < lease_term_seconds


def decide(
    found: Snapshot,
    *,
    fingerprint: str,
    lease_term_seconds: float,
    max_attempts: int,
    age_seconds: float | None = None,
    max_age_seconds: float | None = None,
) -> Action:
    """What to do with a valid message.

    Args:
        found: what the store holds.
        fingerprint: digest of the message's content; one id belongs to one content.
        lease_term_seconds: a lease unrenewed for so long is stale.
        max_attempts: claims in a row without progress before the job is given up.
        age_seconds: time since the message was sent, where that is known.
        max_age_seconds: a job that nobody has begun by then is given up; no limit if None.
    """
    known = found.result or found.lease
    if known is not None and known.fingerprint != fingerprint:
        return Refuse(
            "job_id: is already used by a job with other content; send a new job_id for a new job"
        )
    lease = found.lease
    owned = is_owned(found, lease_term_seconds)
    if found.result is not None and (found.announced or not owned):
        return RepeatTerminal(say_again=not found.announced)
    if owned:  # by somebody who trains it, or who has committed it and is about to announce it
        return Park()
    epoch = lease.epoch + 1 if lease else 1
    if found.canceled:
        return CommitCanceled(epoch)
    if lease is None and age_seconds and max_age_seconds and age_seconds > max_age_seconds:
        return _too_old(epoch, age_seconds, max_age_seconds)
    attempts = _attempts(lease, found.checkpoint_step)
    if attempts > max_attempts:
        return _give_up(lease, epoch, max_attempts)
    return Claim(epoch, attempts)


def _attempts(lease: Lease | None, checkpoint_step: int) -> int:
    """This claim's number in the row of claims without progress, from 1."""
    if lease is None or checkpoint_step > lease.step:
        return 1
    if lease.state == "released":
        return lease.attempts  # an interruption is not an attempt
    return lease.attempts + 1


def trains_alone(lease: Lease | None, attempts: int) -> bool:
    """Whether a job that is claimed shall be trained beside no other.

    The last attempt at it ended with its trainer or for want of memory, or it comes no further: it
    may be what ends trainers, and shall not do that to its neighbours again and again.

    Args:
        lease: of the last attempt.
        attempts: this claim's number in the row of claims without progress.
    """
    error = lease.error if lease else None
    return attempts > 1 or (error is not None and error.code in _ENDS_TRAINERS)


def _too_old(epoch: int, age_seconds: float, max_age_seconds: float) -> GiveUp:
    return GiveUp(
        epoch,
        ErrorCode.TIME_LIMIT_EXCEEDED,
        f"The job waited {age_seconds / 3600:.1f} hours for a worker and may wait "
        f"{max_age_seconds / 3600:.1f}; send it again, or ask the operator for more workers.",
    )


def _give_up(lease: Lease | None, epoch: int, max_attempts: int) -> GiveUp:
    if lease is not None and lease.error is not None:
        return GiveUp(epoch, lease.error.code, lease.error.message)
    return GiveUp(
        epoch,
        ErrorCode.WORKER_CRASHED,
        f"The training was started {max_attempts} times and its worker ended each time without "
        "progress; send the job again, and tell the operator if it happens again.",
    )


def describe(found: Snapshot, *, lease_term_seconds: float) -> dict[str, Any]:
    """What a person on call wants to know of a job, as plain values.

    `state` is completed, failed or canceled; training; interrupted, failing (waits for its next
    attempt) or lost (its worker is gone); unknown.
    """
    if found.result is not None:
        return {
            "state": found.result.outcome,
            "epoch": found.result.epoch,
            "announced": found.announced,
            "event": found.result.event,
            "body": json.loads(found.result.event_body),
        }
    lease = found.lease
    if lease is None:
        return {"state": "canceled" if found.canceled else "unknown"}
    stale = found.lease_age_seconds >= lease_term_seconds
    states = {"held": "lost" if stale else "training", "released": "interrupted"}
    return {
        "state": states.get(lease.state, "failing"),
        "owner": lease.owner,
        "epoch": lease.epoch,
        "attempt": lease.attempts,
        "progress_percent": lease.percent,
        "checkpoint_step": found.checkpoint_step,
        "renewed_seconds_ago": round(found.lease_age_seconds, 1),
        "cancel_requested": found.canceled,
        "last_error": lease.error.model_dump(mode="json") if lease.error else None,
    }
