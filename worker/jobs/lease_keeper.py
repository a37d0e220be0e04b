"""Who keeps a claimed job ours? A thread that renews the lease and notices a loss or a cancel."""

import contextvars
import threading
import time

import structlog

from worker.jobs.record import JobRecord, LastError, Lease, LostLease
from worker.observability import metrics
from worker.storage.store import StorageError

log = structlog.get_logger()


class LeaseKeeper:
    """Renews one lease until it is let go.

    While the store cannot be reached the owner works on and renewing is tried again; a refused
    renewal means that another worker owns the job.

    Attributes:
        lost: another worker owns the job, or has ended it: stop, say nothing.
        canceled: somebody asked for the job to end.
    """

    def __init__(
        self,
        record: JobRecord,
        lease: Lease,
        etag: str,
        *,
        renew_seconds: float,
        term_seconds: float,
    ) -> None:
        self._record, self._lease, self._etag = record, lease, etag
        self._renew_seconds, self._term_seconds = renew_seconds, term_seconds
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.lost = threading.Event()
        self.canceled = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name=f"lease-{record.job_id}",
            daemon=True,
        )
        self._thread.start()

    @property
    def lease(self) -> Lease:
        """The lease as last written."""
        return self._lease

    def still_ours(self, percent: int = 0) -> bool:
        """Whether nobody has taken the job over, with `percent` written down for who might.

        Asks the store where the last renewal does not say.
        """
        return (percent <= self._lease.percent and self.is_fresh()) or self._renew(percent)

    def may_report(self, percent: int) -> bool:
        """Whether a report of `percent` may go out: the job is ours, and nobody has ended it.

        Asked before every progress report, so that whoever takes the job over starts there, and
        so that a worker that was replaced reports nothing. One that stood still at the wrong
        moment, and was replaced by us, may have ended the job all the same.
        """
        if not self.still_ours(percent):
            return False
        try:
            if self._record.result() is None:
                return True
        except StorageError as error:
            log.warning("result_not_looked_up", reason=str(error))
            return False
        log.warning("job_was_ended_by_another", epoch=self._lease.epoch)
        self.lost.set()
        return False

    def let_go(self, *, failed: LastError | None = None) -> None:
        """Stop renewing and leave the lease free: interrupted, or failed with a passing error."""
        self.close()
        with self._lock:
            if self.lost.is_set():
                return
            state = "failed" if failed else "released"
            try:
                self._write(self._lease.model_copy(update={"state": state, "error": failed}))
            except LostLease:
                self.lost.set()

    def close(self) -> None:
        """Stop renewing; the lease stays as it is."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def is_fresh(self) -> bool:
        """Whether nobody can have taken the job over: it was renewed within half of its term."""
        if self.lost.is_set() or self._closing.is_set():
            return False
        return time.monotonic() - self._renewed_at < self._term_seconds / 2

    def _run(self) -> None:
        while not self._closing.wait(self._renew_seconds):
            # A progress report may have renewed it just now.
            if time.monotonic() - self._renewed_at > self._renew_seconds / 2:
                self._renew(self._lease.percent)
            try:
                if self._record.is_canceled():
                    self.canceled.set()
            except StorageError as error:
                log.warning("cancel_not_looked_up", reason=str(error))
            if self.lost.is_set():
                return

    def _renew(self, percent: int) -> bool:
        with self._lock:
            if self.lost.is_set() or self._closing.is_set():
                return False
            lease = self._lease.model_copy(update={"percent": max(percent, self._lease.percent)})
            asked_at = time.monotonic()
            try:
                self._write(lease)
            except LostLease:
                log.warning("lease_lost", epoch=lease.epoch)
                metrics.LEASE_RENEWALS.labels("lost").inc()
                self.lost.set()
                return False
            except StorageError as error:
                log.warning("lease_not_renewed", reason=str(error))
                metrics.LEASE_RENEWALS.labels("failed").inc()
                return False
            self._lease, self._renewed_at = lease, asked_at
            metrics.LEASE_RENEWALS.labels("renewed").inc()
            return True

    def _write(self, lease: Lease) -> None:
        """Write over our own lease. Raises `LostLease` or `StorageError`."""
        try:
            self._etag = self._record.renew(lease, self._etag)
        except LostLease:
            # It may be ours and newer than we know: written by a try whose answer got lost.
            found = self._record.lease()
            if found is None or (found[0].owner, found[0].epoch) != (lease.owner, lease.epoch):
                raise
            self._etag = self._record.renew(lease, found[1].etag)
