"""One delivery's way through the worker: read it, ask the store, decide, do it, settle it."""

import time
from collections.abc import Callable, Sequence

import structlog

from worker.broker.publisher import PublishFailed
from worker.broker.topology import Topology
from worker.contract.base_model_choice import for_base_model
from worker.contract.errors import ErrorCode, InvalidJob
from worker.contract.events import ProgressBody
from worker.contract.packing import company
from worker.jobs.attempt import Attempts, Ended
from worker.jobs.conclusion import Conclusion
from worker.jobs.decide import (
    Claim,
    CommitCanceled,
    GiveUp,
    Park,
    Refuse,
    RepeatTerminal,
    Snapshot,
    decide,
    is_owned,
    trains_alone,
)
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.intake import Intake, Order
from worker.jobs.job_folder import job_folder
from worker.jobs.place import Turn
from worker.jobs.record import JobRecord, Lease, Result
from worker.jobs.sharing import Trainee
from worker.observability import metrics, tracing
from worker.storage.images import FetchedImage
from worker.storage.store import StorageError, StoredObject

log = structlog.get_logger()

#: Time between two tries to put a message off that the broker does not take, seconds.
_PUT_OFF_AGAIN_SECONDS = 5.0


class JobRunner:
    """Handles deliveries of the job queues, any number of threads at a time."""

    def __init__(
        self,
        *,
        owner: str,
        intake: Intake,
        attempts: Attempts,
        conclusion: Conclusion,
        topology: Topology,
        record: Callable[[str], JobRecord],
    ) -> None:
        self._owner, self._intake, self._attempts = owner, intake, attempts
        self._conclusion, self._topology, self._record = conclusion, topology, record

    def handle(self, held: HeldDelivery, turn: Turn) -> None:
        """Deal with one delivery. Never raises: what fails is tried again later."""
        try:
            self._handle(held, turn)
        except (StorageError, PublishFailed) as error:
            log.warning("job_put_off", reason=str(error))
            self._put_off(held)
        except Exception:
            log.exception("job_handling_failed")
            self._put_off(held)
        finally:
            turn.end()
            held.close()

    def _handle(self, held: HeldDelivery, turn: Turn) -> None:
        try:
            order = self._intake.read(held.delivery)
        except InvalidJob as error:
            self._refuse(error, held)
            return
        held.job_id = order.job.job_id
        ids: dict[str, str | int] = {"job_id": order.job.job_id, "style_id": order.job.style_id}
        with (
            structlog.contextvars.bound_contextvars(**ids),
            tracing.span("job", held.delivery.headers, **ids),
        ):
            if order.ignored_fields:
                log.info("message_fields_ignored", fields=list(order.ignored_fields))
            self._act(order, held, turn)

    def _act(
        self,
        order: Order,
        held: HeldDelivery,
        turn: Turn,
        fetched: Sequence[FetchedImage] | None = None,
    ) -> None:
        found, previous = look(order.record)
        rules = self._attempts.rules
        action = decide(
            found,
            fingerprint=order.fingerprint,
            lease_term_seconds=rules.lease_term_seconds,
            max_attempts=rules.max_attempts,
            age_seconds=time.time() - order.sent_at if order.sent_at else None,
            max_age_seconds=rules.max_age_seconds,
        )
        metrics.DELIVERIES.labels(type(action).__name__).inc()
        log.info("job_decided", action=type(action).__name__, redelivered=held.delivery.redelivered)
        match action:
            case Claim():
                self._claim(order, action, (found, previous), held, turn, fetched)
            case Park():
                held.park()
            case RepeatTerminal(say_again):
                assert found.result is not None  # noqa: S101 - decide's condition
                if say_again:
                    self._conclude(found.result, order.record, held)
                held.ack()
            case Refuse(message):
                self._quarantine(held, order.job.style_id, ErrorCode.INVALID_JOB, message)
            case CommitCanceled(epoch):
                self._end(order.canceled(epoch), order.record, held)
            case GiveUp(epoch, code, message):
                self._end(order.failed(epoch, code, message), order.record, held)

    def _claim(
        self,
        order: Order,
        claim: Claim,
        looked: tuple[Snapshot, StoredObject | None],
        held: HeldDelivery,
        turn: Turn,
        fetched: Sequence[FetchedImage] | None,
    ) -> None:
        """Train the job if it is its turn; else wait for it."""
        found, previous = looked
        trainee = _trainee(order, alone=trains_alone(found.lease, claim.attempts))
        if not turn.begin(trainee):
            self._wait_for_turn(order, trainee, held, turn)
            return
        lease = self._lease(order, claim, found)
        alone = trainee.company is None
        ended = self._attempts.run(order, lease, previous, held, turn, fetched, alone=alone)
        if ended is not None:
            self._after_attempt(ended, order, held)

    def _wait_for_turn(
        self, order: Order, trainee: Trainee, held: HeldDelivery, turn: Turn
    ) -> None:
        """The trainer is busy: fetch the pictures meanwhile. Nothing is claimed before the turn.

        A job that is not ours leaves no trace, so whoever gets its message next begins with it.
        """
        if order.nameless:
            # The copy carries the id: given back without one it might be taken for an earlier run.
            held.move(self._topology.resume)
            return

        def unwanted() -> bool:
            return self._attempts.stopping() or held.is_lost()

        rules, stages = self._attempts.rules, self._attempts.stages
        with job_folder(rules.work_dir) as folder:
            fetched = stages.fetch_ahead(order.job, folder, unwanted)
            log.info("job_waits_for_trainer", pictures_fetched=fetched is not None)
            if turn.wait(trainee, unwanted):
                self._act(order, held, turn, fetched)
                return
            log.info("job_given_back")
            if unwanted():
                held.requeue()
            else:
                # As a copy: a quorum queue counts what comes back, and drops what does too often.
                held.move(self._topology.resume)

    def _lease(self, order: Order, claim: Claim, found: Snapshot) -> Lease:
        before = found.lease
        return Lease(
            owner=self._owner,
            epoch=claim.epoch,
            fingerprint=order.fingerprint,
            attempts=claim.attempts,
            step=found.checkpoint_step,
            percent=before.percent if before else 0,
            accepted_at=before.accepted_at if before else 0.0,
        )

    def _after_attempt(self, ended: Ended, order: Order, held: HeldDelivery) -> None:
        if ended.quiet:
            self._end(ended.result, order.record, held, ended.last_progress)
            return
        # A receiver hangs on a report, and no progress may arrive after the end. The slot
        # has waited: the result stands, and the parked message will see to the rest.
        if order.record.commit(ended.result) == ended.result:
            self._attempts.note_end(ended.result)
        # Nor is the lease let go of: a copy of the message may be on its way already.
        held.park()

    def _refuse(self, error: InvalidJob, held: HeldDelivery) -> None:
        """Dead-letter, record, and tell the sender where that is possible."""
        held.job_id, result = self._intake.refusal(error, held.delivery)
        with structlog.contextvars.bound_contextvars(job_id=held.job_id, style_id=error.style_id):
            log.warning("job_refused", reason=error.message)
            record = self._record(held.job_id)
            found, _ = look(record)
            standing = found.result
            if standing is None and is_owned(found, self._attempts.rules.lease_term_seconds):
                # Another worker took what this one cannot: its catalogue or its version differs.
                # Or a message has a running job's id. In both cases the job's end is not ours.
                held.park()
                return
            if result is None or (standing and standing.fingerprint != result.fingerprint):
                # Nobody can be told; or another job had this id, and its receiver must not hear
                # of two ends.
                self._quarantine(held, error.style_id, error.code, error.message)
            elif standing is None or not found.announced:
                self._end(standing or result, record, held)
            else:
                held.ack()

    def _quarantine(
        self, held: HeldDelivery, style_id: int | None, code: ErrorCode, message: str
    ) -> None:
        """Dead-letter a message whose sender cannot be told; who looks at this worker can."""
        self._conclusion.bury(held, code, message)
        activity = self._attempts.activity
        activity.ended(held.job_id or "", style_id, "failed", code.value, message)
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
        if ours:
            self._attempts.note_end(result)
        self._conclude(standing, record, held, last_progress if ours else None)
        held.ack()

    def _conclude(
        self,
        result: Result,
        record: JobRecord,
        held: HeldDelivery,
        last_progress: tuple[ProgressBody, int] | None = None,
    ) -> None:
        self._conclusion.conclude(result, held, last_progress)
        record.mark_announced()
        try:
            record.tidy()
        except StorageError as error:
            log.warning("job_not_tidied", reason=str(error))

    def _put_off(self, held: HeldDelivery) -> None:
        """Have it tried again later, as a copy: a quorum queue drops what comes back too often."""
        while True:
            try:
                held.move(self._topology.retry_for_attempt(1))
            except PublishFailed as error:
                log.warning("job_not_put_off", reason=str(error))
            except Exception:
                # Not the broker's doing: to go on trying would keep the place, and help nobody.
                log.exception("job_not_put_off")
                time.sleep(_PUT_OFF_AGAIN_SECONDS)
                break
            else:
                return
            if self._attempts.stopping() or held.is_lost():
                break
            time.sleep(_PUT_OFF_AGAIN_SECONDS)
        held.requeue()


def _trainee(order: Order, *, alone: bool) -> Trainee:
    parameters = for_base_model(order.job.parameters, order.base_model)
    return Trainee(order.job.job_id, None if alone else company(parameters, order.base_model))


def look(record: JobRecord) -> tuple[Snapshot, StoredObject | None]:
    """What the store says about a job, and the object that holds its lease."""
    result = record.result()
    if result is not None and record.is_announced():
        return Snapshot(result=result, announced=True), None
    lease = record.lease()
    checkpoint = record.checkpoint() if lease else None  # nobody began: there can be none
    snapshot = Snapshot(
        result=result,
        canceled=record.is_canceled(),
        lease=lease[0] if lease else None,
        lease_age_seconds=lease[1].age_seconds if lease else 0.0,
        checkpoint_step=checkpoint[0].step if checkpoint else 0,
    )
    return snapshot, lease[1] if lease else None
