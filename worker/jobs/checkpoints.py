"""A job's newest checkpoint: stored once the trainer has left it, fetched by whoever goes on."""

import hashlib
from pathlib import Path

import structlog

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import CheckpointEvent
from worker.jobs.claimed_job import Claimed
from worker.jobs.record import CheckpointPointer, LostLease
from worker.jobs.trainer_files import own_file
from worker.storage.store import ObjectMissing, ObjectStore, ObjectUrl, StorageError

log = structlog.get_logger()


def store_newest(store: ObjectStore, claimed: Claimed, event: CheckpointEvent) -> None:
    """Upload, move the pointer, delete the old one last. A failure costs this one only."""
    path = own_file(event.path, claimed.folder)
    url = claimed.record.keys.checkpoint_file(claimed.epoch, event.step)
    old = claimed.checkpoint
    try:
        digest = _sha256(path)
        store.upload(url, path, content_type="application/octet-stream", sha256_hex=digest)
        pointer = CheckpointPointer(
            step=event.step, epoch=claimed.epoch, url=str(url), sha256=digest
        )
        claimed.checkpoint = (
            pointer,
            claimed.record.point_to(pointer, old[1] if old else None),
        )
        log.info("checkpoint_stored", step=event.step, bytes=path.stat().st_size)
        claimed.on_checkpoint(event.step, True)
        if old is not None and old[0].url != str(url):
            store.delete(ObjectUrl.parse(old[0].url))
    except (StorageError, OSError) as error:
        log.warning("checkpoint_not_stored", step=event.step, reason=str(error))
        claimed.on_checkpoint(event.step, False)
    except LostLease:
        # The lease decides who owns the job; its keeper will stop this one.
        log.warning("checkpoint_pointer_was_moved", step=event.step)


def fetch_newest(store: ObjectStore, claimed: Claimed) -> str | None:
    """Where the newest checkpoint lies now, in the job's folder; None if there is none to use.

    Raises:
        JobError: the store cannot be used, which may pass.
    """
    while claimed.checkpoint is not None:
        try:
            return _fetch(store, claimed, claimed.checkpoint[0])
        except ObjectMissing:
            # Its worker was not dead, only slow: it has left a newer one and deleted this.
            missing, claimed.checkpoint = claimed.checkpoint, claimed.record.checkpoint()
            if claimed.checkpoint == missing:
                log.warning("checkpoint_missing", url=missing[0].url)
                break
    return None


def _fetch(store: ObjectStore, claimed: Claimed, pointer: CheckpointPointer) -> str | None:
    path = claimed.folder / "checkpoints" / "resumed.safetensors"
    url = ObjectUrl.parse(pointer.url)
    try:
        fetched = store.download(url, path, max_bytes=2**34)
    except ObjectMissing:
        raise
    except StorageError as error:
        if error.transient:
            raise _storage_error(error) from None
        log.warning("checkpoint_not_readable", url=pointer.url, reason=str(error))
        return None
    if fetched.sha256 != pointer.sha256:
        log.warning("checkpoint_damaged", url=pointer.url)
        return None
    log.info("checkpoint_found", step=pointer.step)
    return str(path)


def _storage_error(error: StorageError) -> JobError:
    return JobError(
        ErrorCode.TRAINING_FAILED,
        f"The job is tried again, because the store could not be used: {error}",
        transient=True,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
