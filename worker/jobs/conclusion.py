"""What follows once a job's result stands: stable keys, dead letter, terminal event.

Every step may be repeated, so a crash between any two is mended by the next delivery.
"""

from typing import Any

import structlog

from worker import __version__
from worker.broker.topology import Topology
from worker.contract.errors import ErrorCode
from worker.contract.events import CompleteBody, FailedBody, ProgressBody, TrainingMetric
from worker.contract.headers import DeadLetterHeaders
from worker.contract.job import TrainingJob
from worker.contract.manifest import PREVIEW_SHEET, REPORT_FILE
from worker.contract.pipe import FinishedEvent
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.outbox import Outbox
from worker.jobs.record import CurrentAdapter, Lease, Result, read_document
from worker.storage.keys import JobKeys, StyleKeys
from worker.storage.store import ObjectStore, ObjectUrl, PreconditionFailed

log = structlog.get_logger()


class Conclusion:
    """Carries a standing result to the store's stable keys, the dead-letter queue, the outbox."""

    def __init__(
        self, *, store: ObjectStore, bucket: str, outbox: Outbox, topology: Topology, owner: str
    ) -> None:
        self._store, self._bucket = store, bucket
        self._outbox, self._topology, self._owner = outbox, topology, owner

    def conclude(
        self,
        result: Result,
        held: HeldDelivery,
        last_progress: tuple[ProgressBody, int] | None = None,
    ) -> None:
        """Do all that follows from `result`. Raises `StorageError` or `PublishFailed`."""
        if result.outcome == "completed":
            self._publish_adapter(result)
        elif result.outcome == "failed":
            body = FailedBody.model_validate_json(result.event_body)
            self.bury(held, body.error_code, body.error_message)
        self._outbox.put(result, last_progress)

    def bury(self, held: HeldDelivery, code: ErrorCode, message: str) -> None:
        """Put a copy of the message into the dead-letter queue, with the reason."""
        log.error("job_dead_lettered", code=code, reason=message)
        reason = DeadLetterHeaders(
            job_id=held.job_id or "",
            code=code,
            message=message,
            worker=self._owner,
            version=__version__,
        )
        held.copy(self._topology.dead, **reason.headers())

    def _publish_adapter(self, result: Result) -> None:
        """Copy the files to the job's own place and to the style's stable keys.

        The stable keys belong to the job that was accepted last. Whoever copies looks again
        afterwards and mends what a slower worker overwrote.
        """
        assert result.output_prefix is not None  # noqa: S101 - set for every completed result
        style = StyleKeys(self._bucket, result.style_id)
        own = style.job_prefix(result.job_id)
        self._copy(result.files, ObjectUrl.parse(result.output_prefix), own)
        mine = CurrentAdapter(
            job_id=result.job_id,
            accepted_at=result.accepted_at,
            prefix=str(own),
            files=result.files,
        )
        while True:
            found = read_document(self._store, style.current, CurrentAdapter)
            newest = found[0] if found else mine
            if found is None or newest.accepted_at <= mine.accepted_at:
                try:
                    self._store.write(
                        style.current,
                        mine.body(),
                        content_type="application/json",
                        only_if_absent=found is None,
                        only_if_etag=found[1].etag if found else None,
                    )
                except PreconditionFailed:
                    continue
                newest = mine
            if newest.job_id != mine.job_id:
                log.info("adapter_superseded", by_job_id=newest.job_id)
            self._copy(newest.files, ObjectUrl.parse(newest.prefix), style.prefix)
            after = read_document(self._store, style.current, CurrentAdapter)
            if after is not None and after[0].job_id == newest.job_id:
                return

    def _copy(self, names: tuple[str, ...], source: ObjectUrl, target: ObjectUrl) -> None:
        for name in names:
            self._store.copy(source.child(name), target.child(name))


def completed_result(
    job: TrainingJob,
    base: str | None,
    lease: Lease,
    finished: FinishedEvent,
    stage_seconds: dict[str, float],
    bucket: str,
) -> Result:
    """The result of a trained and uploaded job."""
    style = StyleKeys(bucket, job.style_id)
    url = str(style.adapter)
    metadata = {
        **finished.metadata,
        **_what_can_be_seen(style, finished),
        "files": {file.name: file.sha256 for file in finished.files},
        "immutable_prefix": str(style.job_prefix(job.job_id)),
        "stage_seconds": {name: round(seconds, 3) for name, seconds in stage_seconds.items()},
        "worker_version": __version__,
    }
    body = CompleteBody(
        style_id=job.style_id,
        job_id=job.job_id,
        model_url=url,
        model_path=url,
        metadata=metadata,
        training_metric=TrainingMetric(loss=finished.loss, epochs=finished.epochs),
    )
    return Result(
        outcome="completed",
        epoch=lease.epoch,
        fingerprint=lease.fingerprint,
        job_id=job.job_id,
        style_id=job.style_id,
        event=body.event,
        event_body=body.body().decode(),
        webhook_base=base,
        output_prefix=str(JobKeys(bucket, job.job_id).output_prefix(lease.epoch)),
        files=tuple(file.name for file in finished.files),
        accepted_at=lease.accepted_at,
    )


def _what_can_be_seen(style: StyleKeys, finished: FinishedEvent) -> dict[str, Any]:
    """Where report and previews lie, of a job that has them."""
    names = {file.name for file in finished.files}
    found: dict[str, Any] = {}
    if REPORT_FILE in names:
        found["report_url"] = str(style.stable(REPORT_FILE))
    if PREVIEW_SHEET in names:
        found["preview_grid_url"] = str(style.stable(PREVIEW_SHEET))
        found["previews"] = [
            preview
            | {name: str(style.stable(preview[name])) for name in ("before", "after")}
            | {
                "along": [
                    picture | {"file": str(style.stable(picture["file"]))}
                    for picture in preview.get("along", [])
                ]
            }
            for preview in finished.metadata.get("previews", [])
        ]
    return found


def ended_result(
    job_id: str,
    style_id: int,
    base: str | None,
    epoch: int,
    fingerprint: str,
    code: ErrorCode,
    message: str,
) -> Result:
    """The result of a job that failed or was canceled."""
    body = FailedBody(style_id=style_id, job_id=job_id, error_message=message, error_code=code)
    return Result(
        outcome="canceled" if code is ErrorCode.CANCELED else "failed",
        epoch=epoch,
        fingerprint=fingerprint,
        job_id=job_id,
        style_id=style_id,
        event=body.event,
        event_body=body.body().decode(),
        webhook_base=base,
    )
