"""How does a receiver learn how far a job is? Latest wins, every 30 seconds, never in the way."""

import contextvars
import threading
import time
from collections.abc import Callable

import structlog

from worker.contract.events import Progress, ProgressBody
from worker.contract.pipe import StageEvent, StepEvent

log = structlog.get_logger()

#: Room for the reports of one epoch in the sequence numbers, so that they grow across epochs.
_SEQUENCES_AN_EPOCH = 1_000_000


class ProgressReporter:
    """Sends one job's progress from a thread of its own.

    The first report goes out at once, then the newest every `interval_seconds`. A slow or dead
    receiver costs reports, nothing else.
    """

    def __init__(
        self,
        send: Callable[[ProgressBody, int], None],
        *,
        job_id: str,
        style_id: int,
        epoch: int,
        floor_percent: int,
        interval_seconds: float,
    ) -> None:
        """Start with a first report of `floor_percent`, 0 for a job that is taken up new.

        Args:
            send: sends one report with its sequence number; blocks as long as it must.
            job_id: the job.
            style_id: its style.
            epoch: number of the claim; later claims get higher sequence numbers.
            floor_percent: what a receiver may have seen already; progress never goes back.
            interval_seconds: time between two reports.
        """
        self._send = send
        self._job_id, self._style_id = job_id, style_id
        self._sequence = epoch * _SEQUENCES_AN_EPOCH
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._latest = Progress(
            current_epoch=0,
            total_epochs=0,
            progress_percent=floor_percent,
            estimated_seconds=None,
            stage="preparing",
        )
        self._estimated_at = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name=f"progress-{job_id}",
            daemon=True,
        )
        self._thread.start()

    @property
    def latest(self) -> Progress:
        """The newest known progress, its time estimate counted down to now."""
        with self._lock:
            newest, estimated_at = self._latest, self._estimated_at
        if newest.estimated_seconds is None:
            return newest
        left = newest.estimated_seconds - (time.monotonic() - estimated_at)
        return newest.model_copy(update={"estimated_seconds": max(0, round(left))})

    def on_stage(self, event: StageEvent) -> None:
        """The job entered a stage."""
        if event.status == "started":
            with self._lock:
                plan = event.fields.get("plan", self._latest.plan)
                self._latest = self._latest.model_copy(update={"stage": event.stage, "plan": plan})

    def on_step(self, event: StepEvent) -> None:
        """Training went on. 100 % is kept for a job that is stored."""
        percent = min(99, 100 * event.step // max(1, event.total_steps))
        with self._lock:
            self._estimated_at = time.monotonic()
            self._latest = Progress(
                current_epoch=event.epoch,
                total_epochs=event.total_epochs,
                progress_percent=max(percent, self._latest.progress_percent),
                estimated_seconds=round(event.estimated_seconds),
                stage="training",
                current_step=event.step,
                total_steps=event.total_steps,
                loss=event.loss,
                plan=self._latest.plan,
            )

    def final_body(self) -> tuple[ProgressBody, int]:
        """The report at 100 %, and its sequence number: goes out just before `complete`."""
        done = self.latest.model_copy(
            update={"progress_percent": 100, "estimated_seconds": 0, "stage": "committed"}
        )
        body = ProgressBody(style_id=self._style_id, job_id=self._job_id, progress=done)
        return body, self._sequence + 1

    def close(self, timeout_seconds: float) -> bool:
        """Send nothing more. Returns whether the last request has ended by then."""
        self._closing.set()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._sequence += 1
            body = ProgressBody(style_id=self._style_id, job_id=self._job_id, progress=self.latest)
            try:
                self._send(body, self._sequence)
            except Exception:  # progress is best effort, whatever went wrong
                log.warning("progress_not_sent", exc_info=True)
            if self._closing.wait(self._interval_seconds):
                return
