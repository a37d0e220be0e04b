"""Is a training stuck? It is when no step came for ten times as long as a step usually takes."""

from worker.contract.pipe import (
    Event,
    FailedEvent,
    FinishedEvent,
    StageEvent,
    StepEvent,
    StoppedEvent,
)

#: A step may take so many times its usual time.
TIMES_USUAL = 10.0

#: No training is called stuck before so many seconds: reports and checkpoints take time too.
LEAST_SECONDS = 60.0


#: Stages of a neighbour that hold nobody up.
_HARMLESS = frozenset({"waiting", "training"})


class StepWatch:
    """Hears a trainer's events, knows when to lose patience. Pure: the caller brings the time.

    Only a training that has made steps is judged. Loading, caching and exporting have no usual
    time; the job's time limit covers them.
    """

    def __init__(self, least_seconds: float = LEAST_SECONDS) -> None:
        self._least_seconds = least_seconds
        self._last_step_at: float | None = None
        self._patience_seconds = least_seconds
        self._held_up_by: set[str | None] = set()

    def hear(self, event: Event, now: float) -> None:
        """An event came at `now`, monotonic seconds."""
        if isinstance(event, StepEvent):
            self._last_step_at = now if event.step < event.total_steps else None
            self._patience_seconds = max(self._least_seconds, TIMES_USUAL * event.step_seconds)
        elif isinstance(event, StageEvent):
            self._last_step_at = None

    def hear_beside(self, event: Event, now: float) -> None:
        """An event of a neighbour at the trainer: while that loads or exports, steps may wait."""
        match event:
            case StageEvent() if event.status == "started" and event.stage not in _HARMLESS:
                self._held_up_by.add(event.job_id)
            case StageEvent() | FinishedEvent() | StoppedEvent() | FailedEvent():
                self._held_up_by.discard(event.job_id)
            case _:
                return
        if self._last_step_at is not None:
            self._last_step_at = now

    @property
    def is_held_up(self) -> bool:
        """Whether a neighbour does what steps may have to wait for."""
        return bool(self._held_up_by)

    def silent_seconds(self, now: float) -> float | None:
        """How long there was no step, if that is too long."""
        if self._held_up_by or self._last_step_at is None:
            return None
        if now - self._last_step_at <= self._patience_seconds:
            return None
        return now - self._last_step_at
