"""What is said with a trainer about one job: its events, its stop, its clocks.

A trainer may have several jobs; each has its conversation, on its slot's thread.
"""

import queue
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from worker.contract.errors import JobError
from worker.contract.pipe import (
    Event,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    ReadyEvent,
    StopCommand,
    StoppedEvent,
    TrainCommand,
)
from worker.jobs.step_watch import StepWatch
from worker.jobs.time_limit import TimeLimit

log = structlog.get_logger()

#: How long a trainer gets to obey a stop before it is killed, seconds.
STOP_SECONDS = 60.0

#: How often a waiting runner looks at clock and child, seconds.
TICK_SECONDS = 0.25

#: How long the last words of a child that has ended may take to get here, seconds.
_LAST_WORDS_SECONDS = 1.0


class Child(Protocol):
    """The trainer, as a conversation needs it."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def send(self, line: bytes) -> None:
        """Tell it something, if it still hears; returns at once."""
        ...

    def died(self, otherwise: str) -> JobError:
        """The error of a job whose trainer has ended; `otherwise` where nothing says how."""
        ...

    def give_up(self, because: str) -> JobError:
        """End it, and with it every job that it has; the error that says why."""
        ...


class Conversation:
    """One job at one trainer, from its command to its end."""

    def __init__(self, child: Child, command: TrainCommand, stuck_after_seconds: float) -> None:
        self.job_id = command.job_id
        self._child, self._command = child, command
        self._watch = StepWatch(stuck_after_seconds)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._over = False

    def hear(self, event: Event | None) -> None:
        """The trainer said this, or nothing will follow; called on the thread that reads.

        What it says about another job is heard too where it explains why ours stands still.
        """
        self._events.put(event)

    def hold(
        self,
        on_event: Callable[[Event], None],
        *,
        should_stop: Callable[[], StopCommand | None],
        time_limit_seconds: float,
    ) -> FinishedEvent | StoppedEvent:
        """Send the job and listen until it ends; see `TrainerProcess.train`."""
        self._child.send(self._command.line())
        limit, stop_sent_at = TimeLimit(time_limit_seconds, time.monotonic()), None
        while True:
            event = self._next_event()
            if event is not None:
                ended = self._handle(event, on_event, limit)
                if ended is not None:
                    return ended
            elif self._over:
                raise self._child.died("it ended")
            now = time.monotonic()
            # Judged only when nothing waits to be heard: storing a checkpoint may take its time.
            if event is None and (silent_seconds := self._watch.silent_seconds(now)):
                raise self._child.give_up(f"it made no step for {silent_seconds:.0f} seconds")
            if stop_sent_at is None:
                stop = should_stop()
                if stop is None and limit.is_over(now):
                    stop = StopCommand(reason="time_limit")
                if stop is not None:
                    self.stop(stop)
                    stop_sent_at = now
            elif self._watch.is_held_up:
                stop_sent_at = now  # it cannot obey before its neighbour has loaded or exported
            elif event is None and now - stop_sent_at > STOP_SECONDS:
                raise self._child.give_up("it did not stop when told to")

    def stop(self, command: StopCommand) -> None:
        """Have this job stop, and no other."""
        about = {"job_id": self.job_id}
        self._child.send(command.model_copy(update=about).line())

    def _next_event(self) -> Event | None:
        alive = self._child.alive
        try:
            event = self._events.get(timeout=TICK_SECONDS if alive else _LAST_WORDS_SECONDS)
        except queue.Empty:
            self._over = not alive
            return None
        self._over = event is None
        return event

    def _handle(
        self, event: Event, on_event: Callable[[Event], None], limit: TimeLimit
    ) -> FinishedEvent | StoppedEvent | None:
        if isinstance(event, ReadyEvent) or event.job_id not in (None, self.job_id):
            self._watch.hear_beside(event, time.monotonic())
            return None
        now = time.monotonic()
        self._watch.hear(event, now)
        limit.hear(event, now)
        match event:
            case FinishedEvent() | StoppedEvent():
                return event
            case FailedEvent():
                if event.detail:
                    log.warning("trainer_failure_detail", detail=event.detail)
                raise JobError(event.code, event.message, transient=event.transient)
            case LogEvent():
                write_down(event)
            case _:
                on_event(event)
        return None


def write_down(event: LogEvent) -> None:
    """Log what the trainer wants to be logged, with whatever is bound to this thread."""
    getattr(log, event.level)(event.event, **event.fields)
