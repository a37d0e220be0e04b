"""What does this worker do now, and how did its last jobs end?"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge

from worker.contract.pipe import StageEvent, StepEvent
from worker.observability import metrics

#: Most points of a loss curve; beyond it every other one is dropped.
CURVE_POINTS = 240

#: Ended jobs that are remembered.
RECENT_JOBS = 20


@dataclass(frozen=True)
class EndedJob:
    """How a job, or an attempt at it, ended here.

    Attributes:
        outcome: completed, failed, canceled; `retried` if another attempt follows;
            `interrupted` if the worker was told to stop.
        style_id: its style, None of a message that names none.
        code, message: of the error, empty without one.
        seconds: from its being taken up, 0 if it never was. steps: optimizer steps done.
        loss: the last one told. ended_at: Unix time.
        curve: `(step, loss)`.
    """

    job_id: str
    style_id: int | None
    outcome: str
    code: str
    message: str
    seconds: float
    steps: int
    loss: float | None
    ended_at: float
    curve: list[tuple[int, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


@dataclass
class JobActivity:
    """A job that is being worked on. Written by its slot's thread, read by any.

    Attributes:
        slot: the place it has among the worker's jobs, from 0.
        samples_a_step: pictures that an optimizer step is computed from.
        taken_up_at, checkpoint_at: Unix time.
    """

    job_id: str
    style_id: int
    slot: int
    attempt: int
    samples_a_step: int
    taken_up_at: float
    stage: str = "preparing"
    checkpoint_step: int = 0
    checkpoint_at: float | None = None
    step: StepEvent | None = None
    stepped_at: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stride: int = 1
    _skipped: int = 0

    def on_event(self, event: StageEvent | StepEvent) -> None:
        """A stage began or ended, or training went on."""
        slot = str(self.slot)
        if isinstance(event, StepEvent):
            self._on_step(event, slot)
            return
        if event.memory.peak:
            metrics.TRAINER_MEMORY_PEAK.labels(slot).set(event.memory.peak)
        if event.status == "started":
            self.stage = event.stage
            _forget(metrics.LAST_STEP, slot)  # from the first step on it is there again

    def on_checkpoint(self, step: int, stored: bool) -> None:
        """A checkpoint was made; `stored` if the store has it."""
        metrics.CHECKPOINTS.labels("stored" if stored else "failed").inc()
        if stored:
            self.checkpoint_step, self.checkpoint_at = step, time.time()
            metrics.LAST_CHECKPOINT.labels(str(self.slot)).set_to_current_time()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        with self._lock:
            step, curve = self.step, list(self.curve)
        return {
            "job_id": self.job_id,
            "style_id": self.style_id,
            "slot": self.slot,
            "attempt": self.attempt,
            "stage": self.stage,
            "taken_up_at": self.taken_up_at,
            "checkpoint_step": self.checkpoint_step,
            "checkpoint_at": self.checkpoint_at,
            "stepped_at": self.stepped_at,
            "training": step.model_dump(exclude={"type"}) if step else None,
            "curve": curve,
        }

    def _on_step(self, event: StepEvent, slot: str) -> None:
        done = event.step - (self.step.step if self.step else event.step - 1)
        metrics.STEPS.inc(max(0, done))
        metrics.SAMPLES.inc(max(0, done) * self.samples_a_step)
        metrics.STEP_DURATION.labels(slot).set(event.step_seconds)
        metrics.LOSS.labels(slot).set(event.loss)
        metrics.PROGRESS.labels(slot).set(event.step / max(1, event.total_steps))
        metrics.LAST_STEP.labels(slot).set_to_current_time()
        with self._lock:
            self.step, self.stepped_at = event, time.time()
            self._skipped += 1
            if self._skipped >= self._stride:
                self._skipped = 0
                self.curve.append((event.step, event.loss))
            if len(self.curve) > CURVE_POINTS:
                self.curve = self.curve[::2]
                self._stride *= 2


class Activity:
    """The jobs of one worker. Any thread may call it."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self.ends = 0
        self._lock = threading.Lock()
        self._running: dict[int, JobActivity] = {}
        self._left: dict[str, JobActivity] = {}
        self._recent: deque[EndedJob] = deque(maxlen=RECENT_JOBS)

    def begin(
        self,
        job_id: str,
        style_id: int,
        *,
        attempt: int,
        samples_a_step: int,
        waited_seconds: float | None,
    ) -> JobActivity:
        """A job was taken up.

        Args:
            job_id: the job.
            style_id: its style.
            attempt: its number, from 1.
            samples_a_step: pictures that an optimizer step is computed from.
            waited_seconds: since it was sent; None if that is not known or it is not the first
                time that it is taken up.
        """
        if waited_seconds is not None:
            metrics.QUEUE_WAIT.observe(max(0.0, waited_seconds))
        with self._lock:
            slot = next(i for i in range(len(self._running) + 1) if i not in self._running)
            job = JobActivity(job_id, style_id, slot, attempt, samples_a_step, time.time())
            self._running[slot] = job
            metrics.JOBS_RUNNING.set(len(self._running))
        return job

    def leave(self, job: JobActivity) -> None:
        """Nobody works on it here any more; `ended` may follow."""
        slot = str(job.slot)
        with self._lock:
            self._running.pop(job.slot, None)
            self._left[job.job_id] = job
            if len(self._left) > RECENT_JOBS:
                del self._left[next(iter(self._left))]
            metrics.JOBS_RUNNING.set(len(self._running))
        for gauge in _OF_A_JOB:
            _forget(gauge, slot)

    def ended(
        self, job_id: str, style_id: int | None, outcome: str, code: str = "", message: str = ""
    ) -> None:
        """Remember and count how a job or an attempt at it ended; see `EndedJob`."""
        if outcome == "retried":
            metrics.ATTEMPTS_FAILED.labels(code).inc()
        elif outcome == "interrupted":
            metrics.INTERRUPTIONS.inc()
        else:
            metrics.JOBS.labels(outcome, code).inc()
        now = time.time()
        with self._lock:
            running = [job for job in self._running.values() if job.job_id == job_id]
            job = running[0] if running else self._left.pop(job_id, None)
        step = job.step if job else None
        end = EndedJob(
            job_id=job_id,
            style_id=style_id,
            outcome=outcome,
            code=code,
            message=message,
            seconds=now - job.taken_up_at if job else 0.0,
            steps=step.step if step else 0,
            loss=step.loss if step else None,
            ended_at=now,
            curve=list(job.curve) if job else [],
        )
        with self._lock:
            self._recent.appendleft(end)
            self.ends += 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        with self._lock:
            running = [self._running[slot] for slot in sorted(self._running)]
            recent = list(self._recent)
        return {
            "jobs": [job.as_dict() for job in running],
            "recent": [job.as_dict() for job in recent],
        }


_OF_A_JOB = (
    metrics.STEP_DURATION,
    metrics.LOSS,
    metrics.PROGRESS,
    metrics.LAST_STEP,
    metrics.LAST_CHECKPOINT,
    metrics.TRAINER_MEMORY_PEAK,
)


def _forget(gauge: Gauge, slot: str) -> None:
    try:
        gauge.remove(slot)
    except KeyError:
        return  # it never had a value there
