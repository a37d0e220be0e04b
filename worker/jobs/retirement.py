"""When does a worker end by itself? After so many jobs, or after so long without work.

For workers that something starts a few jobs at a time, as KEDA's ScaledJob does. Such a worker may
be the only one: what it announced is sent before it ends, or nobody would send it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from worker.jobs.quota import JobQuota

log = structlog.get_logger()

#: How often the worker looks whether it is done, seconds.
_LOOK_SECONDS = 0.25

#: How long a worker that is done waits until the queue of events is empty, seconds. What other
#: workers put there, or receivers that answer slowly, must not keep it for ever.
_LAST_EVENTS_SECONDS = 30.0

#: Looks in a row that must find no event: one between queue and slot is in neither.
_QUIET_LOOKS = 2


@dataclass(frozen=True)
class RunLimits:
    """When a worker ends by itself; never, unless one is given.

    Attributes:
        max_jobs: it begins so many jobs and no more.
        idle_seconds: it has had neither job nor event for so long, while there was a broker.
    """

    max_jobs: int | None = None
    idle_seconds: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.max_jobs is not None or self.idle_seconds is not None


class Works(Protocol):
    """A consumer, as far as it matters here."""

    @property
    def working(self) -> bool:
        """Whether a slot works."""
        ...

    @property
    def idle_seconds(self) -> float:
        """Time since a slot last worked; 0 while one does or while there is no session."""
        ...

    def stop_consuming(self) -> None:
        """Take no further message."""
        ...


class Retirement:
    """Watches over a worker with limits.

    Args:
        limits: the operator's.
        quota: of the worker's slots; the same `max_jobs`.
        jobs: the consumer of jobs. events: that of terminal webhooks.
        events_left: messages in the queue of events; None if that cannot be told.
        stop_within: waits so many seconds at most for somebody to tell the worker to stop, for ever
            if None; whether somebody did.
    """

    def __init__(
        self,
        limits: RunLimits,
        quota: JobQuota,
        *,
        jobs: Works,
        events: Works,
        events_left: Callable[[], int | None],
        stop_within: Callable[[float | None], bool],
    ) -> None:
        self._limits, self._quota = limits, quota
        self._jobs, self._events = jobs, events
        self._events_left, self._stop_within = events_left, stop_within

    def wait(self) -> None:
        """Return when the worker is to stop: because it was told to, or because it is done."""
        if not self._limits.given:
            self._stop_within(None)
            return
        while not self._stop_within(_LOOK_SECONDS):
            if reason := self.reason():
                log.info("worker_done", reason=reason)
                self._finish()
                return

    def reason(self) -> str | None:
        """Which limit is met now: `max_jobs`, `idle`, or None."""
        if self._quota.used_up and not self._jobs.working:
            return "max_jobs"
        idle_seconds = min(self._jobs.idle_seconds, self._events.idle_seconds)
        limit = self._limits.idle_seconds
        return "idle" if limit is not None and idle_seconds >= limit else None

    def _finish(self) -> None:
        """A job that came at the last moment is worked on, and what was announced is sent."""
        self._jobs.stop_consuming()
        while self._jobs.working:
            if self._stop_within(_LOOK_SECONDS):
                return
        until, quiet = time.monotonic() + _LAST_EVENTS_SECONDS, 0
        while quiet < _QUIET_LOOKS and time.monotonic() < until:
            none_left = self._events_left() == 0 and not self._events.working
            quiet = quiet + 1 if none_left else 0
            if self._stop_within(_LOOK_SECONDS):
                return
