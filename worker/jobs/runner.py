"""One delivery's way through the worker: read it, ask the store, decide, do it, settle it."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from worker.broker.consumer import Delivery
from worker.broker.publisher import PublishFailed
from worker.broker.topology import Topology
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, InvalidJob, JobError
from worker.contract.events import ProgressBody
from worker.contract.job import ParsedMessage, TrainingJob, parse_message
from worker.contract.pipe import FinishedEvent, StageEvent, StepEvent, StopCommand, StoppedEvent
from worker.jobs.conclusion import Conclusion, completed_result, ended_result
from worker.jobs.decide import (
    Claim,
    CommitCanceled,
    GiveUp,
    Park,
    Refuse,
    RepeatTerminal,
    Snapshot,
    decide,
)
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.progress import ProgressReporter
from worker.jobs.record import JobRecord, LastError, Lease, LostLease, Result
from worker.jobs.stages import Claimed, Interrupted, StageRunner
from worker.jobs.trainer_process import TrainerSlot
from worker.storage.store import ObjectStore, StorageError, StoredObject
from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed

log = structlog.get_logger()

#: How long the end of a job waits for a progress request on its way before the message is parked
#: and the slot goes on, seconds.
_LAST_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class RunnerSettings:
    """The numbers of a runner; `worker.settings` explains each."""

    owner: str
    bucket: str
    work_dir: Path
    max_images: int
    max_attempts: int
    lease_term_seconds: float
    lease_renew_seconds: float
    progress_interval_seconds: float
    webhook_base_url: str | None
    default_base_model: str


class JobRunner:
    """Handles deliveries of the job queues, any number of threads at a time."""

    def __init__(
        self,
        settings: RunnerSettings,
        *,
        store: ObjectStore,
        topology: Topology,
        stages: StageRunner,
        conclusion: Conclusion,
        catalogue: dict[str, BaseModelEntry],
        allow_list: WebhookAllowList,
        send_progress: Callable[[str, ProgressBody, int], bool],
        stopping: Callable[[], bool],
    ) -> None:
        """Keep the parts.

        Args:
            settings: the numbers.
            store: where job records lie.
            topology: names of the queues.
            stages: what happens to a claimed job.
            conclusion: what happens after a result stands.
            catalogue: the base models that jobs may name.
            allow_list: which receivers may be told.
            send_progress: sends one report to a base; False if the receiver said 410 Gone.
            stopping: whether the worker drains.
        """
        self._settings, self._store, self._topology = settings, store, topology
        self._stages, self._conclusion, self._catalogue = stages, conclusion, catalogue
        self._allow_list, self._send_progress = allow_list, send_progress
        self._stopping = stopping

    def handle(self, held: HeldDelivery, slot: TrainerSlot) -> None:
        """Deal with one delivery. Never raises: what fails is tried again later."""
        try:
            self._handle(held, slot)
        except (StorageError, PublishFailed) as error:
            log.warning("job_put_off", reason=str(error))
            self._put_off(held)
        except Exception:
            log.exception("job_handling_failed")
            self._put_off(held)
        finally:
            held.close()

    def _handle(self, held: HeldDelivery, slot: TrainerSlot) -> None:
        delivery = held.delivery
        try:
            parsed = parse_message(
                delivery.body,
                message_id=delivery.message_id,
                max_images=self._settings.max_images,
            )
            job = self._identified(parsed, delivery)
            held.job_id = job.job_id
            with structlog.contextvars.bound_contextvars(job_id=job.job_id, style_id=job.style_id):
                if parsed.ignored_fields:
                    log.info("message_fields_ignored", fields=list(parsed.ignored_fields))
                base = self._receiver(job)
                self._act(job, base, self._base_model(job, base), held, slot)
        except InvalidJob as error:
            self._refuse(error, held)

    # --- what a valid message leads to

    def _act(
        self,
        job: TrainingJob,
        base: str | None,
        base_model: BaseModelEntry,
        held: HeldDelivery,
        slot: TrainerSlot,
    ) -> None:
        record = self._record(job.job_id)
        fingerprint = _fingerprint(job)
        found, previous = self._look(record)
        action = decide(
            found,
            fingerprint=fingerprint,
            lease_term_seconds=self._settings.lease_term_seconds,
            max_attempts=self._settings.max_attempts,
        )
        log.info("job_decided", action=type(action).__name__, redelivered=held.delivery.redelivered)
        end = _Ending(job, base, fingerprint, record, found.lease)
        match action:
            case Park():
                held.park()
            case RepeatTerminal(say_again):
                assert found.result is not None  # noqa: S101 - decide's condition
                if say_again:
                    self._conclusion.conclude(found.result, held)
                held.ack()
            case Refuse(message):
                self._conclusion.bury(held, ErrorCode.INVALID_JOB, message)
                held.ack()
            case CommitCanceled(epoch):
                self._end(end.canceled(epoch), record, held)
            case GiveUp(epoch, code, message):
                self._end(end.failed(epoch, code, message), record, held)
            case Claim(epoch, attempts):
                lease = Lease(
                    owner=self._settings.owner,
                    epoch=epoch,
                    fingerprint=fingerprint,
                    attempts=attempts,
                    step=found.checkpoint_step,
                    percent=found.lease.percent if found.lease else 0,
                    accepted_at=found.lease.accepted_at if found.lease else 0.0,
                )
                self._work(end, base_model, lease, previous, held, slot)

    def _work(
        self,
        end: "_Ending",
        base_model: BaseModelEntry,
        lease: Lease,
        previous: StoredObject | None,
        held: HeldDelivery,
        slot: TrainerSlot,
    ) -> None:
        """Claim the job, run its stages, and write down how they ended."""
        record = end.record
        try:
            etag = record.claim(lease, previous)
            if previous is None:
                lease, etag = self._accept(record, lease, etag)
        except LostLease:
            held.park()
            return
        log.info("job_taken_up", epoch=lease.epoch, attempt=lease.attempts)
        end.lease = lease
        keeper = LeaseKeeper(
            record,
            lease,
            etag,
            renew_seconds=self._settings.lease_renew_seconds,
            term_seconds=self._settings.lease_term_seconds,
        )
        progress = self._start_progress(end, lease, keeper)
        try:
            result = self._run_stages(end, base_model, lease, keeper, progress, held, slot)
        finally:
            quiet = progress is None or progress.close(_LAST_PROGRESS_SECONDS)
            keeper.close()
        if keeper.lost.is_set():
            log.warning("job_was_taken_over", epoch=lease.epoch)
            held.park()
            return
        if result is None:
            return
        if not quiet:
            # A receiver hangs on a report: do not keep the slot for it. The parked message sees
            # to the terminal event.
            record.commit(result)
            held.park()
            return
        last = progress.final_body() if progress and result.outcome == "completed" else None
        self._end(result, record, held, last)

    def _run_stages(
        self,
        end: "_Ending",
        base_model: BaseModelEntry,
        lease: Lease,
        keeper: LeaseKeeper,
        progress: ProgressReporter | None,
        held: HeldDelivery,
        slot: TrainerSlot,
    ) -> Result | None:
        """The result to commit, or None where the job is not ours to end."""

        def on_event(event: StageEvent | StepEvent) -> None:
            if progress is None:
                return
            if isinstance(event, StageEvent):
                progress.on_stage(event)
            else:
                progress.on_step(event)

        def should_stop() -> StopCommand | None:
            if keeper.lost.is_set() or keeper.canceled.is_set():
                return StopCommand(reason="cancel")
            return StopCommand(reason="drain") if self._stopping() else None

        with self._job_folder() as folder:
            claimed = Claimed(
                job=end.job,
                epoch=lease.epoch,
                record=end.record,
                folder=folder,
                base_model=base_model,
                on_event=on_event,
                should_stop=should_stop,
                checkpoint=end.record.checkpoint(),
            )
            try:
                ended = self._stages.run(claimed, slot)
            except Interrupted as stop:
                ended = StoppedEvent(reason=stop.command.reason, step=0)
            except JobError as error:
                return self._after_error(error, end, lease, keeper, held)
            finally:
                slot.recycle()
        if isinstance(ended, FinishedEvent):
            return completed_result(
                end.job, end.base, lease, ended, claimed.stage_seconds, self._settings.bucket
            )
        return self._after_stop(ended, end, lease, keeper, held)

    def _after_stop(
        self,
        stopped: StoppedEvent,
        end: "_Ending",
        lease: Lease,
        keeper: LeaseKeeper,
        held: HeldDelivery,
    ) -> Result | None:
        if keeper.lost.is_set():
            return None
        match stopped.reason:
            case "cancel":
                return end.canceled(lease.epoch)
            case "time_limit":
                return end.failed(
                    lease.epoch,
                    ErrorCode.TIME_LIMIT_EXCEEDED,
                    f"The training reached its time limit at step {stopped.step}; send it with "
                    "fewer steps, or ask the operator for a longer limit.",
                )
            case "drain":
                keeper.let_go()
                log.info("job_interrupted", step=stopped.step)
                held.requeue()
        return None

    def _after_error(
        self, error: JobError, end: "_Ending", lease: Lease, keeper: LeaseKeeper, held: HeldDelivery
    ) -> Result | None:
        if keeper.lost.is_set():
            return None
        log.warning("job_failed", code=error.code, reason=error.message, transient=error.transient)
        checkpoint = end.record.checkpoint()
        progressed = checkpoint is not None and checkpoint[0].step > lease.step
        if not error.transient or (
            lease.attempts >= self._settings.max_attempts and not progressed
        ):
            return end.failed(lease.epoch, error.code, error.message)
        keeper.let_go(failed=LastError(code=error.code, message=error.message))
        held.move(
            self._topology.retry_for_attempt(lease.attempts),
            **{"x-lora-attempts": lease.attempts, "x-lora-code": error.code.value},
        )
        return None

    # --- what a message that cannot be trained leads to

    def _refuse(self, error: InvalidJob, held: HeldDelivery) -> None:
        """Dead-letter, record, and tell the sender where that is possible."""
        digest = hashlib.sha256(held.delivery.body).hexdigest()
        job_id = held.job_id = error.job_id or f"sha256-{digest[:40]}"
        with structlog.contextvars.bound_contextvars(job_id=job_id, style_id=error.style_id):
            log.warning("job_refused", reason=error.message)
            base = self._settings.webhook_base_url or error.webhook_base
            if error.style_id is None or base is None or not self._allow_list.allows(base):
                self._conclusion.bury(held, error.code, error.message)
                held.ack()
                return
            record = self._record(job_id)
            result = ended_result(
                job_id, error.style_id, base, 0, f"invalid-{digest}", error.code, error.message
            )
            standing = record.result()
            if standing is not None and standing.fingerprint != result.fingerprint:
                # Another job had this id and has ended: its receiver must not hear twice.
                self._conclusion.bury(held, error.code, error.message)
                held.ack()
            elif standing is None or not record.is_delivered():
                self._end(standing or result, record, held)
            else:
                held.ack()

    def _end(
        self,
        result: Result,
        record: JobRecord,
        held: HeldDelivery,
        last_progress: tuple[ProgressBody, int] | None = None,
    ) -> None:
        """Commit, do what follows from the result that stands, acknowledge."""
        standing = record.commit(result)
        ours = standing == result
        log.info("job_committed", outcome=standing.outcome, epoch=standing.epoch, ours=ours)
        self._conclusion.conclude(standing, held, last_progress if ours else None)
        held.ack()

    def _put_off(self, held: HeldDelivery) -> None:
        try:
            held.move(self._topology.retry_for_attempt(1))
        except PublishFailed:
            held.requeue()

    # --- looking things up

    def _record(self, job_id: str) -> JobRecord:
        return JobRecord(self._store, self._settings.bucket, job_id)

    def _look(self, record: JobRecord) -> tuple[Snapshot, StoredObject | None]:
        result = record.result()
        if result is not None:
            return Snapshot(result=result, delivered=record.is_delivered()), None
        lease, checkpoint = record.lease(), record.checkpoint()
        return Snapshot(
            canceled=record.is_canceled(),
            lease=lease[0] if lease else None,
            lease_age_seconds=lease[1].age_seconds if lease else 0.0,
            checkpoint_step=checkpoint[0].step if checkpoint else 0,
        ), (lease[1] if lease else None)

    def _identified(self, parsed: ParsedMessage, delivery: Delivery) -> TrainingJob:
        """The job under its run's id.

        A body without any id is a new run each time it is published after its last run ended:
        digest, digest-2, digest-3, …
        """
        if not parsed.id_is_digest:
            return parsed.job
        digest, run = parsed.job.job_id, 1
        while self._record(_run_id(digest, run)).result() is not None:
            run += 1
        if delivery.redelivered and run > 1 and self._record(_run_id(digest, run)).lease() is None:
            run -= 1
        return parsed.job.model_copy(update={"job_id": _run_id(digest, run)})

    def _receiver(self, job: TrainingJob) -> str | None:
        base = self._settings.webhook_base_url or job.webhook_url
        if base is None:
            log.warning("job_without_webhook")
            return None
        try:
            self._allow_list.check(base)
        except WebhookNotAllowed as error:
            problem = ("webhook_url", error.message.rstrip("."))
            raise InvalidJob([problem], style_id=job.style_id, job_id=job.job_id) from None
        return base

    def _base_model(self, job: TrainingJob, base: str | None) -> BaseModelEntry:
        name = job.parameters.base_model or self._settings.default_base_model
        entry = self._catalogue.get(name)
        if entry is None:
            known = ", ".join(sorted(self._catalogue))
            what = f"{name!r} is not in this worker's catalogue; it has {known}"
            raise InvalidJob(
                [("parameters.base_model", what)],
                style_id=job.style_id,
                webhook_base=base,
                job_id=job.job_id,
            )
        return entry

    def _accept(self, record: JobRecord, lease: Lease, etag: str) -> tuple[Lease, str]:
        """Note when the job was first claimed, by the store's clock."""
        written = record.lease()
        if written is None or written[1].etag != etag:
            raise LostLease(record.job_id)
        accepted = written[1].last_modified.timestamp()
        lease = lease.model_copy(update={"accepted_at": accepted})
        return lease, record.renew(lease, etag)

    def _start_progress(
        self, end: "_Ending", lease: Lease, keeper: LeaseKeeper
    ) -> ProgressReporter | None:
        base = end.base
        if base is None:
            return None

        def send(body: ProgressBody, sequence: int) -> None:
            if keeper.confirm(body.progress.progress_percent) and not self._send_progress(
                base, body, sequence
            ):
                log.info("job_canceled_by_receiver")
                keeper.canceled.set()
                end.record.request_cancel()

        return ProgressReporter(
            send,
            job_id=end.job.job_id,
            style_id=end.job.style_id,
            epoch=lease.epoch,
            floor_percent=lease.percent,
            interval_seconds=self._settings.progress_interval_seconds,
        )

    @contextmanager
    def _job_folder(self) -> Iterator[Path]:
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._settings.work_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Ending:
    """What a result needs to know about its job."""

    job: TrainingJob
    base: str | None
    fingerprint: str
    record: JobRecord
    lease: Lease | None

    def failed(self, epoch: int, code: ErrorCode, message: str) -> Result:
        return ended_result(
            self.job.job_id, self.job.style_id, self.base, epoch, self.fingerprint, code, message
        )

    def canceled(self, epoch: int) -> Result:
        return self.failed(epoch, ErrorCode.CANCELED, "The job was canceled; nothing was uploaded.")


def _fingerprint(job: TrainingJob) -> str:
    return hashlib.sha256(job.model_dump_json(exclude={"job_id"}).encode()).hexdigest()


def _run_id(digest: str, run: int) -> str:
    return digest if run == 1 else f"{digest}-{run}"
