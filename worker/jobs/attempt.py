"""One attempt at a claimed job: hold the lease, report progress, run the stages, tell the end."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from worker.broker.topology import Topology
from worker.contract.errors import ErrorCode, JobError
from worker.contract.events import FailedBody, ProgressBody
from worker.contract.pipe import FinishedEvent, StageEvent, StepEvent, StopCommand, StoppedEvent
from worker.jobs.claimed_job import Claimed, Interrupted
from worker.jobs.conclusion import completed_result
from worker.jobs.control import RunningJobs
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.intake import Order
from worker.jobs.job_folder import job_folder
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.place import Turn
from worker.jobs.record import LastError, Lease, LostLease, Result
from worker.jobs.reports import Reports, SendReport
from worker.jobs.stages import StageRunner
from worker.observability.activity import Activity, JobActivity
from worker.storage.images import FetchedImage
from worker.storage.store import StoredObject

log = structlog.get_logger()


@dataclass(frozen=True)
class AttemptRules:
    """The numbers of an attempt; `worker.settings` explains each."""

    bucket: str
    work_dir: Path
    max_attempts: int
    lease_term_seconds: float
    lease_renew_seconds: float
    progress_interval_seconds: float
    max_age_seconds: float | None


@dataclass(frozen=True)
class Ended:
    """An attempt that ended its job.

    Attributes:
        result: to be committed.
        last_progress: the report at 100 % and its sequence number, of a completed job.
        quiet: no progress request is on its way any more.
    """

    result: Result
    last_progress: tuple[ProgressBody, int] | None
    quiet: bool


@dataclass(frozen=True)
class Attempts:
    """What attempts need of the worker.

    Attributes:
        running: told of every job that begins and ends here.
        send_progress: sends one report.
        stopping: whether the worker drains.
        activity: told of what goes on, for whoever looks at this worker.
    """

    rules: AttemptRules
    topology: Topology
    stages: StageRunner
    running: RunningJobs
    send_progress: SendReport
    stopping: Callable[[], bool]
    activity: Activity

    def run(
        self,
        order: Order,
        lease: Lease,
        previous: StoredObject | None,
        held: HeldDelivery,
        turn: Turn,
        fetched: Sequence[FetchedImage] | None = None,
        *,
        alone: bool = False,
    ) -> Ended | None:
        """Claim the job and work on it; the turn, which is ours, ends with its training.

        Returns how it ended, or None where that is not ours to say: the message is then dealt
        with already (parked, given back, or waiting for its next attempt). `alone` if it may share
        its passes with no other job.
        """
        try:
            etag = order.record.claim(lease, previous)
            if not lease.accepted_at:
                lease, etag = _accept(order, lease, etag)
        except LostLease:
            held.park()
            return None
        turn.claimed()
        log.info("job_taken_up", epoch=lease.epoch, attempt=lease.attempts)
        keeper = LeaseKeeper(
            order.record,
            lease,
            etag,
            renew_seconds=self.rules.lease_renew_seconds,
            term_seconds=self.rules.lease_term_seconds,
        )
        with closing(keeper):
            self.running.add(order.job.job_id, keeper.canceled)
            seen = self._begin_activity(order, lease, first=previous is None)
            attempt = _Attempt(self, order, lease, keeper, held, turn, seen)
            try:
                result = attempt.work(fetched, alone=alone)
                if result is not None:
                    keeper.still_ours()  # one that stood still for long may have been replaced
            finally:
                self.running.remove(order.job.job_id)
                self.activity.leave(seen)
                quiet = attempt.reports.end()
        if keeper.lost.is_set():
            log.warning("job_was_taken_over", epoch=lease.epoch)
            held.park()
            return None
        if result is None:
            return None
        if keeper.canceled.is_set():  # in the last moment: nothing is committed yet
            result = order.canceled(lease.epoch)
        return Ended(result, attempt.reports.last(result), quiet)

    def _begin_activity(self, order: Order, lease: Lease, *, first: bool) -> JobActivity:
        asked = order.job.parameters
        batch = min(asked.train_batch_size, len(order.job.images))
        return self.activity.begin(
            order.job.job_id,
            order.job.style_id,
            attempt=lease.attempts,
            samples_a_step=batch * asked.gradient_accumulation_steps,
            waited_seconds=time.time() - order.sent_at if order.sent_at and first else None,
        )

    def note_end(self, result: Result) -> None:
        """Have it known here how a job ended."""
        code = message = ""
        if result.outcome != "completed":
            body = FailedBody.model_validate_json(result.event_body)
            code, message = body.error_code.value, body.error_message
        self.activity.ended(result.job_id, result.style_id, result.outcome, code, message)


class _Attempt:
    """The state of one attempt."""

    def __init__(
        self,
        room: Attempts,
        order: Order,
        lease: Lease,
        keeper: LeaseKeeper,
        held: HeldDelivery,
        turn: Turn,
        seen: JobActivity,
    ) -> None:
        self._seen = seen
        self._room, self._order, self._lease = room, order, lease
        self._keeper, self._held, self._turn = keeper, held, turn
        self.reports = Reports(
            order, lease, keeper, room.send_progress, room.rules.progress_interval_seconds
        )

    def work(self, fetched: Sequence[FetchedImage] | None, *, alone: bool) -> Result | None:
        """Run the stages; the result, or None where the job goes on elsewhere or later."""
        stage_seconds: dict[str, float] = {}
        with job_folder(self._room.rules.work_dir) as folder:
            claimed = Claimed(
                job=self._order.job,
                epoch=self._lease.epoch,
                record=self._order.record,
                folder=folder,
                base_model=self._order.base_model,
                on_event=self._on_event,
                on_checkpoint=self._seen.on_checkpoint,
                should_stop=self._should_stop,
                checkpoint=self._order.record.checkpoint() if self._lease.epoch > 1 else None,
                fetched=fetched,
                alone=alone,
                stage_seconds=stage_seconds,
            )
            try:
                ended = self._train_and_store(claimed)
            except Interrupted as stop:
                ended = StoppedEvent(reason=stop.command.reason, step=0)
            except JobError as error:
                return None if self._keeper.lost.is_set() else self._after_error(error)
        if self._keeper.lost.is_set():
            return None
        if isinstance(ended, FinishedEvent):
            return completed_result(
                self._order.job,
                self._order.base,
                self._lease,
                ended,
                stage_seconds,
                self._room.rules.bucket,
            )
        return self._after_stop(ended)

    def _train_and_store(self, claimed: Claimed) -> FinishedEvent | StoppedEvent:
        stages = self._room.stages
        try:
            ended = stages.train(claimed, self._turn.trainer)
        finally:
            # The next job trains while this one's files are stored.
            self._turn.end()
        if isinstance(ended, FinishedEvent):
            stages.store_files(claimed, ended)
        return ended

    def _after_stop(self, stopped: StoppedEvent) -> Result | None:
        match stopped.reason:
            case "cancel":
                return self._order.canceled(self._lease.epoch)
            case "time_limit":
                return self._order.failed(
                    self._lease.epoch,
                    ErrorCode.TIME_LIMIT_EXCEEDED,
                    f"The training reached its time limit at step {stopped.step}; send it with "
                    "fewer steps, or ask the operator for a longer limit.",
                )
            case "drain":
                self._let_go()
                log.info("job_interrupted", step=stopped.step)
                self._note("interrupted")
                self._held.requeue()
        return None

    def _after_error(self, error: JobError) -> Result | None:
        log.warning("job_failed", code=error.code, reason=error.message, transient=error.transient)
        if error.transient and self._room.stopping():
            # Such as a trainer that could not stop in time: that is no attempt.
            return self._after_stop(StoppedEvent(reason="drain", step=0))
        checkpoint = self._order.record.checkpoint()
        progressed = checkpoint is not None and checkpoint[0].step > self._lease.step
        last = self._lease.attempts >= self._room.rules.max_attempts and not progressed
        if last or not error.transient:
            return self._order.failed(self._lease.epoch, error.code, error.message)
        self._let_go(failed=LastError(code=error.code, message=error.message))
        self._note("retried", error.code.value, error.message)
        self._held.move(
            self._room.topology.retry_for_attempt(self._lease.attempts),
            **{"x-lora-attempts": self._lease.attempts, "x-lora-code": error.code.value},
        )
        return None

    def _let_go(self, failed: LastError | None = None) -> None:
        """Free the job for its next owner, whose reports shall not overtake one of ours."""
        self.reports.end()
        self._keeper.let_go(failed=failed)

    def _note(self, outcome: str, code: str = "", message: str = "") -> None:
        job = self._order.job
        self._room.activity.ended(job.job_id, job.style_id, outcome, code, message)

    def _should_stop(self) -> StopCommand | None:
        if self._keeper.lost.is_set() or self._keeper.canceled.is_set():
            return StopCommand(reason="cancel")
        return StopCommand(reason="drain") if self._room.stopping() else None

    def _on_event(self, event: StageEvent | StepEvent) -> None:
        self._seen.on_event(event)
        if isinstance(event, StepEvent):
            self._turn.expect_end(event.estimated_seconds)
        self.reports.on_event(event)


def _accept(order: Order, lease: Lease, etag: str) -> tuple[Lease, str]:
    """Note when the job was first claimed, by the store's clock."""
    written = order.record.lease()
    if written is None or written[1].etag != etag:
        raise LostLease(order.job.job_id)
    accepted = written[1].last_modified.timestamp()
    lease = lease.model_copy(update={"accepted_at": accepted})
    return lease, order.record.renew(lease, etag)
