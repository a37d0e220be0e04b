"""Has a job had its time? What it waits for room beside others is not its own."""

from worker.contract.pipe import Event, StageEvent


class TimeLimit:
    """Hears a trainer's events about one job. Pure: the caller brings the time."""

    def __init__(self, limit_seconds: float, now: float) -> None:
        """The job was sent at `now`, monotonic seconds."""
        self._limit_seconds = limit_seconds
        self._began_at = now
        self._waits_since: float | None = None

    def hear(self, event: Event, now: float) -> None:
        """An event came at `now`."""
        if not isinstance(event, StageEvent) or event.stage != "waiting":
            return
        if event.status == "started":
            self._waits_since = now
        elif self._waits_since is not None:
            self._began_at += now - self._waits_since
            self._waits_since = None

    def is_over(self, now: float) -> bool:
        """Whether the job has to stop."""
        return self._waits_since is None and now - self._began_at > self._limit_seconds
