"""The job's objects in the store: lease, checkpoint pointer, result, cancel tombstone."""

import uuid
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.contract.errors import ErrorCode
from worker.contract.events import EventName
from worker.storage.keys import JobKeys
from worker.storage.store import ObjectStore, ObjectUrl, PreconditionFailed, StoredObject

_JSON = "application/json"


class LostLease(Exception):  # noqa: N818 - a fact about the job, not an error of the store
    """Another worker owns the job now: stop, and say nothing."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    def body(self) -> bytes:
        return self.model_dump_json().encode()


class LastError(_Document):
    """Why the last attempt ended."""

    code: ErrorCode
    message: str


class Lease(_Document):
    """Who works on a job.

    Attributes:
        owner: the worker. epoch: number of the claim, the fencing token.
        fingerprint: digest of the message's content.
        attempts: claims in a row without progress, this one included.
        step: checkpointed steps when it was claimed.
        percent: the highest progress that a receiver may have seen.
        accepted_at: first claim of the job, seconds since the epoch by the store's clock.
        state: held; released by an interruption; failed by an error that may pass.
        error: that error.
        stamp: another one in every writing. Stores make an ETag of the content alone, so that
            without it a renewal would leave the ETag by which another worker takes over.
    """

    owner: str
    epoch: int
    fingerprint: str
    attempts: int = 1
    step: int = 0
    percent: int = 0
    accepted_at: float = 0.0
    state: Literal["held", "released", "failed"] = "held"
    error: LastError | None = None
    stamp: str = ""


class Result(_Document):
    """How the job ended; written once, whichever epoch is first.

    Attributes:
        outcome: completed, failed or canceled. epoch: whose result it is.
        event, event_body: the terminal webhook, to be repeated byte for byte.
        webhook_base: whom to tell; nobody if none.
        output_prefix: where the epoch's files lie (completed only), `s3://bucket/prefix/`.
        files: their names.
        accepted_at: as in the lease; of two jobs for one style the later wins.
    """

    outcome: Literal["completed", "failed", "canceled"]
    epoch: int
    fingerprint: str
    job_id: str
    style_id: int
    event: EventName
    event_body: str
    webhook_base: str | None
    output_prefix: str | None = None
    files: tuple[str, ...] = ()
    accepted_at: float = 0.0


class CheckpointPointer(_Document):
    """Which checkpoint is the newest."""

    step: int
    epoch: int
    url: str
    sha256: str


class CurrentAdapter(_Document):
    """Which job's adapter lies under a style's stable keys."""

    job_id: str
    accepted_at: float
    prefix: str
    files: tuple[str, ...]


_D = TypeVar("_D", bound=_Document)


class JobRecord:
    """One job's objects. Every method may raise `StorageError`."""

    def __init__(self, store: ObjectStore, bucket: str, job_id: str) -> None:
        self._store = store
        self.keys = JobKeys(bucket, job_id)
        self.job_id = job_id

    # --- lease

    def lease(self) -> tuple[Lease, StoredObject] | None:
        """The last claim and the object that holds it."""
        return self._read(self.keys.lease, Lease)

    def claim(self, lease: Lease, previous: StoredObject | None) -> str:
        """Write a claim over `previous`; returns its etag. Raises `LostLease` if others did."""
        return self._replace(self.keys.lease, _stamped(lease), previous.etag if previous else None)

    def renew(self, lease: Lease, etag: str) -> str:
        """Write the lease again; returns the new etag. Raises `LostLease` if it was replaced."""
        return self._replace(self.keys.lease, _stamped(lease), etag)

    # --- result

    def result(self) -> Result | None:
        """How the job ended, if it has."""
        found = self._read(self.keys.result, Result)
        return found[0] if found else None

    def commit(self, result: Result) -> Result:
        """Write the result if there is none; returns the one that stands, whoever wrote it."""
        try:
            self._store.write(
                self.keys.result, result.body(), content_type=_JSON, only_if_absent=True
            )
        except PreconditionFailed:
            standing = self.result()
            if standing is None:  # deleted in between: only a person does that
                raise
            return standing
        return result

    def is_announced(self) -> bool:
        """Whether the terminal event lies in the outbox, which sees to the rest."""
        return self._store.read(self.keys.announced) is not None

    def mark_announced(self) -> None:
        """The outbox has confirmed the terminal event."""
        self._store.write(self.keys.announced, b"{}", content_type=_JSON)

    def claim_first_send(self) -> bool:
        """Whether the terminal event, with the report before it, is the caller's to send first.

        The broker may have the event twice, and no report may follow the end.
        """
        try:
            self._store.write(self.keys.first_send, b"{}", content_type=_JSON, only_if_absent=True)
        except PreconditionFailed:
            return False
        return True

    def is_delivered(self) -> bool:
        """Whether the terminal event has reached its receiver or was given up."""
        return self._store.read(self.keys.delivered) is not None

    def mark_delivered(self) -> None:
        """The terminal event needs no further try."""
        self._store.write(self.keys.delivered, b"{}", content_type=_JSON)

    def clear_delivered(self) -> None:
        """The terminal event is to be tried again, by whoever has it first."""
        self._store.delete(self.keys.delivered)
        self._store.delete(self.keys.first_send)

    # --- cancel

    def is_canceled(self) -> bool:
        """Whether somebody asked for the job to end."""
        return self._store.read(self.keys.cancel) is not None

    def request_cancel(self) -> None:
        """Leave the tombstone: the truth about a cancel."""
        self._store.write(self.keys.cancel, b"{}", content_type=_JSON)

    # --- checkpoint

    def checkpoint(self) -> tuple[CheckpointPointer, str] | None:
        """The newest checkpoint's pointer, and the pointer's etag."""
        found = self._read(self.keys.checkpoint, CheckpointPointer)
        return (found[0], found[1].etag) if found else None

    def point_to(self, pointer: CheckpointPointer, previous_etag: str | None) -> str:
        """Move the pointer by compare-and-swap; returns its etag.

        Where an earlier claim, whose worker was thought dead, has moved it meanwhile, it is
        moved all the same. Raises `LostLease` where a later claim has.
        """
        try:
            return self._replace(self.keys.checkpoint, pointer, previous_etag)
        except LostLease:
            standing = self.checkpoint()
            if standing is None or standing[0].epoch > pointer.epoch:
                raise
            return self._replace(self.keys.checkpoint, pointer, standing[1])

    # --- afterwards

    def tidy(self) -> None:
        """Delete checkpoints and outputs, once the job has ended and its files are in place."""
        for url in self._store.list(self.keys.prefix):
            if url.key.startswith((self.keys.checkpoints.key, self.keys.outputs.key)):
                self._store.delete(url)

    def _read(self, url: ObjectUrl, kind: type[_D]) -> tuple[_D, StoredObject] | None:
        return read_document(self._store, url, kind)

    def _replace(self, url: ObjectUrl, document: _Document, etag: str | None) -> str:
        try:
            return self._store.write(
                url,
                document.body(),
                content_type=_JSON,
                only_if_absent=etag is None,
                only_if_etag=etag,
            )
        except PreconditionFailed:
            raise LostLease(str(url)) from None


def _stamped(lease: Lease) -> Lease:
    return lease.model_copy(update={"stamp": uuid.uuid4().hex})


def read_document(
    store: ObjectStore, url: ObjectUrl, kind: type[_D]
) -> tuple[_D, StoredObject] | None:
    """The JSON document at `url`, or None where there is none.

    Raises:
        ValueError: the object is something else; the text names it. Ours are written whole.
    """
    stored = store.read(url)
    if stored is None:
        return None
    try:
        return kind.model_validate_json(stored.body), stored
    except ValidationError as error:
        raise ValueError(
            f"{url} is not a {kind.__name__}: {error.error_count()} problems"
        ) from None
