"""The place of a trainer: started early, kept warm across jobs, replaced when it is used up."""

import os
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from worker.contract.pipe import Event, FinishedEvent, StopCommand, StoppedEvent, TrainCommand
from worker.jobs.conversation import TICK_SECONDS, Conversation
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerProcess
from worker.jobs.trainer_start import TRAINER_COMMAND, trainer_environment
from worker.observability import metrics

log = structlog.get_logger()


class TrainerSlot:
    """One place for a trainer. Its threads, which alone may start one, live as long as it does."""

    def __init__(
        self,
        *,
        share: Share,
        allow_hub: bool,
        max_jobs: int,
        start_timeout_seconds: float,
        command: Sequence[str] = TRAINER_COMMAND,
        most_at_a_time: int = 1,
    ) -> None:
        """Start nothing yet.

        Args:
            share: what of the machine the trainer has.
            allow_hub: whether it may fetch base models.
            max_jobs: it is replaced after so many.
            start_timeout_seconds: it must be ready by then.
            command: what starts it.
            most_at_a_time: jobs that it was told to train at a time.
        """
        self._environment = trainer_environment(os.environ, share=share, allow_hub=allow_hub)
        self._max_jobs = max_jobs
        self._start_timeout_seconds = start_timeout_seconds
        self._command = command
        self._most_at_a_time = most_at_a_time
        self._lock = threading.Lock()
        self._trainer: TrainerProcess | None = None

    # --- asked by any thread, answered without waiting

    @property
    def is_up(self) -> bool:
        """Whether a trainer runs here that has said that it is ready."""
        trainer = self._trainer
        return trainer is not None and trainer.ready is not None and trainer.alive

    @property
    def slots(self) -> int:
        """Jobs that it trains at a time; it may say that it can have fewer than it was told."""
        trainer = self._trainer
        ready = trainer.ready if trainer else None
        return min(self._most_at_a_time, ready.slots) if ready else self._most_at_a_time

    @property
    def takes_new(self) -> bool:
        """Whether it may be given another job beside those that it has."""
        trainer = self._trainer
        return trainer is None or not self._is_used_up(trainer)

    @property
    def jobs_now(self) -> int:
        """Jobs that are trained here now."""
        trainer = self._trainer
        return trainer.jobs_now if trainer else 0

    # --- the threads of the place

    def warm_up(self) -> None:
        """Have a trainer started, without waiting for it."""
        with self._lock:
            self._have_one()

    def trainer(self, unwanted: Callable[[], bool] = lambda: False) -> TrainerProcess | None:
        """A ready trainer; None once it is `unwanted`. Raises `TrainerDied` if none can be had."""
        with self._lock:
            trainer = self._have_one()
        return trainer if trainer.wait_ready(self._start_timeout_seconds, unwanted) else None

    def train(
        self,
        command: TrainCommand,
        on_event: Callable[[Event], None],
        *,
        should_stop: Callable[[], StopCommand | None],
        time_limit_seconds: float,
    ) -> FinishedEvent | StoppedEvent:
        """Train one job; see `TrainerProcess.train`."""
        while (taken := self._take(command, lambda: should_stop() is not None)) is None:
            # Told to stop before there was a trainer; or its neighbours have made the trainer
            # suspect, and it is replaced when they have ended.
            if stop := should_stop():
                return StoppedEvent(job_id=command.job_id, reason=stop.reason, step=0)
            time.sleep(TICK_SECONDS)
        trainer, conversation = taken
        return trainer.go_on(
            conversation,
            on_event,
            should_stop=should_stop,
            time_limit_seconds=time_limit_seconds,
        )

    def recycle(self) -> None:
        """After a job: a trainer that failed, ended or served its jobs makes room for a new one.

        Not while it has other jobs.
        """
        with self._lock:
            used = self._trainer
            if used is not None and self._is_used_up(used) and not self._is_busy(used):
                self._end(used)
                self._have_one()

    def close(self) -> None:
        """End the trainer when its slot ends."""
        trainer = self._trainer
        if trainer is not None and not trainer.suspect and not trainer.jobs_now:
            trainer.close()
        self.kill()

    def kill(self) -> None:
        """End the trainer at once, from any thread."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.kill()

    def _take(
        self, command: TrainCommand, unwanted: Callable[[], bool]
    ) -> tuple[TrainerProcess, Conversation] | None:
        """A trainer that has taken the job; None if it cannot now."""
        self.recycle()
        trainer = self.trainer(unwanted)
        with self._lock:
            if trainer is None or trainer is not self._trainer or trainer.suspect:
                return None
            if trainer.jobs_now >= self.slots:
                return None
            return trainer, trainer.take(command)

    def _have_one(self) -> TrainerProcess:
        """The trainer, started if there is none or if it has ended."""
        if self._trainer is None or not self._trainer.alive:
            self._trainer = TrainerProcess(self._environment, command=self._command)
            log.info("trainer_started", pid=self._trainer.pid)
        return self._trainer

    def _end(self, used: TrainerProcess) -> None:
        clean = used.alive and not used.suspect
        metrics.TRAINERS_REPLACED.labels(str(clean).lower()).inc()
        log.info("trainer_replaced", pid=used.pid, jobs_done=used.jobs_given, clean=clean)
        if clean:
            used.close()
        else:
            used.kill()
        self._trainer = None

    def _is_used_up(self, trainer: TrainerProcess) -> bool:
        return not trainer.alive or trainer.suspect or trainer.jobs_given >= self._max_jobs

    def _is_busy(self, trainer: TrainerProcess) -> bool:
        return trainer.alive and trainer.jobs_now > 0
