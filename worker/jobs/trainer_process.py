"""The trainer: a child process that is started, talked to about its jobs, and ended."""

import collections
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from pydantic import ValidationError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    CheckpointEvent,
    Event,
    FinishedEvent,
    LogEvent,
    ReadyEvent,
    StepEvent,
    StopCommand,
    StoppedEvent,
    TrainCommand,
    parse_event,
)
from worker.jobs.conversation import TICK_SECONDS, Conversation, write_down
from worker.jobs.step_watch import LEAST_SECONDS
from worker.jobs.trainer_start import TRAINER_COMMAND

log = structlog.get_logger()

#: Lines of the child's stderr that are kept to explain its end.
_STDERR_LINES = 40

#: Errors of a job that say nothing against a trainer whose other jobs go on.
_OF_THE_JOB_ALONE = frozenset(
    {
        *(ErrorCode.INVALID_JOB, ErrorCode.INVALID_IMAGE, ErrorCode.IMAGE_DOWNLOAD_FAILED),
        *(ErrorCode.NON_FINITE_LOSS, ErrorCode.TIME_LIMIT_EXCEEDED, ErrorCode.CANCELED),
    }
)


class TrainerDied(JobError):  # noqa: N818 - what happened, in one word
    """The child ended in the middle of a job: costs one attempt."""

    def __init__(self, how: str) -> None:
        super().__init__(
            ErrorCode.WORKER_CRASHED,
            f"The training process ended unexpectedly ({how}); the job is tried again.",
            transient=True,
        )


class TrainerProcess:
    """One trainer child, with any number of jobs: each is trained by a call on a thread of its own.

    The child asks the kernel to kill it when the thread that started it ends (that is what
    `PR_SET_PDEATHSIG` watches), so only a thread that lives as long as the worker may start one.

    Attributes:
        ready: what it said when it was ready; None before that.
        jobs_given: how many it was given in all.
        suspect: something happened after which it had better be replaced.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        command: Sequence[str] = TRAINER_COMMAND,
        stuck_after_seconds: float = LEAST_SECONDS,
    ) -> None:
        """Start the child; it becomes ready by itself while the caller goes on.

        Args:
            environment: all that the child sees.
            command: what to start.
            stuck_after_seconds: least time without a step after which it counts as stuck.
        """
        self._stuck_after_seconds = stuck_after_seconds
        self._child = subprocess.Popen(  # noqa: S603 - our own program, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._conversations: dict[str, Conversation] = {}
        self._over = self._end_is_logged = False
        self._ready_or_over = threading.Event()
        self.ready: ReadyEvent | None = None
        self.jobs_given = 0
        self.suspect = False
        threading.Thread(target=self._read_events, name="trainer-events", daemon=True).start()
        threading.Thread(target=self._read_stderr, name="trainer-stderr", daemon=True).start()
        threading.Thread(target=self._write_lines, name="trainer-commands", daemon=True).start()

    @property
    def pid(self) -> int:
        """The child's process id, which is its group's id too."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._child.poll() is None

    @property
    def jobs_now(self) -> int:
        """Jobs that it has."""
        return len(self._conversations)

    def wait_ready(
        self, timeout_seconds: float, unwanted: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until the child has imported its libraries; False once it is `unwanted`.

        Raises:
            TrainerDied: it ended, or said nothing for `timeout_seconds`.
        """
        until = time.monotonic() + timeout_seconds
        while not self._ready_or_over.wait(max(0.0, min(TICK_SECONDS, until - time.monotonic()))):
            if unwanted():
                return False
            if time.monotonic() >= until:
                break
        if self.ready is None:
            self.kill()
            raise self.died("it did not become ready")
        return True

    def train(
        self,
        command: TrainCommand,
        on_event: Callable[[Event], None],
        *,
        should_stop: Callable[[], StopCommand | None],
        time_limit_seconds: float,
    ) -> FinishedEvent | StoppedEvent:
        """Train one job; `on_event` sees every event in between, on this thread.

        Args:
            command: the job.
            on_event: told of stages, steps and checkpoints; log lines are written here.
            should_stop: looked at several times a second; a command is passed on once.
            time_limit_seconds: the job is stopped after so long.

        Raises:
            JobError: as the trainer said, or `TrainerDied`.
        """
        return self.go_on(
            self.take(command),
            on_event,
            should_stop=should_stop,
            time_limit_seconds=time_limit_seconds,
        )

    def take(self, command: TrainCommand) -> Conversation:
        """Count a job among those that it has; `go_on` with it must follow."""
        conversation = Conversation(self, command, self._stuck_after_seconds)
        with self._lock:
            if command.job_id in self._conversations:
                raise ValueError(f"the trainer has {command.job_id} already")
            self._conversations[command.job_id] = conversation
            self.jobs_given += 1
            if self._over:
                conversation.hear(None)
        return conversation

    def go_on(
        self,
        conversation: Conversation,
        on_event: Callable[[Event], None],
        *,
        should_stop: Callable[[], StopCommand | None],
        time_limit_seconds: float,
    ) -> FinishedEvent | StoppedEvent:
        """Train a job that was taken; see `train`."""
        try:
            ended = conversation.hold(
                on_event, should_stop=should_stop, time_limit_seconds=time_limit_seconds
            )
        except JobError as error:
            self._note_end(of_the_job_alone=error.code in _OF_THE_JOB_ALONE)
            raise
        except BaseException:
            # The listener failed: nobody hears of this job any more, and it need not train on.
            self.suspect = True
            if self.jobs_now > 1:
                conversation.stop(StopCommand(reason="cancel"))
            raise
        else:
            self._note_end(of_the_job_alone=True, finished=isinstance(ended, FinishedEvent))
            return ended
        finally:
            with self._lock:
                del self._conversations[conversation.job_id]

    def send(self, line: bytes) -> None:
        """Have a line written to the child, without waiting until it reads.

        A job's clocks go on whatever another one's long command waits for.
        """
        self._lines.put(line)

    def died(self, otherwise: str) -> TrainerDied:
        """The error that says how the child ended; `otherwise` if it has not."""
        try:
            status = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return TrainerDied(otherwise)
        with self._lock:
            first, self._end_is_logged = not self._end_is_logged, True
        if first:
            log.warning("trainer_ended", pid=self.pid, status=status, stderr=list(self._stderr))
        if status < 0:
            return TrainerDied(f"signal {signal.Signals(-status).name}")
        return TrainerDied(f"exit status {status}")

    def give_up(self, because: str) -> TrainerDied:
        """End the child, whatever it does; the error that says why."""
        self.kill()
        return TrainerDied(because)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End an idle child: close its input, then kill what is left."""
        self._lines.put(None)
        try:
            self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the child and whatever it started, at once."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("trainer_was_gone", pid=self.pid)
        self._child.wait()

    def _note_end(self, *, of_the_job_alone: bool, finished: bool = False) -> None:
        """A trainer of one job is replaced after all but a whole one: nobody else is on it."""
        shared = self.ready is not None and self.ready.slots > 1
        if not finished and not (shared and of_the_job_alone):
            self.suspect = True

    # --- the child's side

    def _read_events(self) -> None:
        assert self._child.stdout is not None  # noqa: S101 - opened with PIPE above
        for line in self._child.stdout:
            try:
                event = parse_event(line)
            except ValidationError:
                log.warning("trainer_line_not_understood", line=line[:200].decode(errors="replace"))
            else:
                self._pass_on(event)
        with self._lock:
            self._over = True
            for conversation in self._conversations.values():
                conversation.hear(None)
        self._ready_or_over.set()

    def _pass_on(self, event: Event) -> None:
        """Have those hear it whom it concerns. A stage of one job may hold up the others."""
        if isinstance(event, ReadyEvent):
            self.ready = event
            self._ready_or_over.set()
            return
        with self._lock:
            here = list(self._conversations.values())
            if event.job_id is None:
                concerned = here if len(here) == 1 else []
            elif isinstance(event, StepEvent | CheckpointEvent | LogEvent):
                concerned = [one for one in here if one.job_id == event.job_id]
            else:
                concerned = here
            for conversation in concerned:
                conversation.hear(event)
        if not concerned and isinstance(event, LogEvent):
            write_down(event)

    def _write_lines(self) -> None:
        assert self._child.stdin is not None  # noqa: S101 - opened with PIPE above
        try:
            with self._child.stdin as stdin:
                while (line := self._lines.get()) is not None:
                    stdin.write(line)
                    stdin.flush()
        except OSError:
            # It has ended, or reads no more: either way no command reaches it.
            log.debug("trainer_input_was_closed", pid=self.pid)
            self.kill()

    def _read_stderr(self) -> None:
        assert self._child.stderr is not None  # noqa: S101 - opened with PIPE above
        for line in self._child.stderr:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._stderr.append(text)
                log.debug("trainer_stderr", pid=self.pid, line=text)
