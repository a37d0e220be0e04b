"""The trainer: a child process that is started, talked to, watched and replaced."""

import collections
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from pydantic import ValidationError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    Event,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    ReadyEvent,
    StopCommand,
    StoppedEvent,
    TrainCommand,
    parse_event,
)
from worker.jobs.devices import Share
from worker.jobs.step_watch import LEAST_SECONDS, StepWatch
from worker.observability import metrics

log = structlog.get_logger()

#: What a trainer is started with; a test passes a stand-in that speaks the same protocol.
TRAINER_COMMAND = (sys.executable, "-m", "worker.training")

#: A trainer of several processes, one a GPU: the same program, started by Accelerate.
_LAUNCHER = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)

#: Environment that a trainer may see. All else, credentials first, stays with the supervisor.
_PASSED_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "PYTORCH_", "TORCH", "TRITON_", "NCCL_", "HF_", "LC_")

#: Names among those that hold a secret all the same.
_WITHHELD_NAMES = frozenset({"HF_TOKEN", "HF_TOKEN_PATH"})

#: Lines of the child's stderr that are kept to explain its end.
_STDERR_LINES = 40

#: How long a trainer gets to obey a stop before it is killed, seconds.
STOP_SECONDS = 60.0

#: How often a waiting runner looks at clock and child, seconds.
_TICK_SECONDS = 0.25


class TrainerDied(JobError):  # noqa: N818 - what happened, in one word
    """The child ended in the middle of a job: costs one attempt."""

    def __init__(self, how: str) -> None:
        super().__init__(
            ErrorCode.WORKER_CRASHED,
            f"The training process ended unexpectedly ({how}); the job is tried again.",
            transient=True,
        )


def trainer_command(processes: int) -> tuple[str, ...]:
    """What starts a trainer of so many processes."""
    if processes == 1:
        return TRAINER_COMMAND
    return (*_LAUNCHER, "--num_processes", str(processes), "--module", "worker.training")


def trainer_environment(
    environment: Mapping[str, str], *, share: Share, allow_hub: bool
) -> dict[str, str]:
    """What of `environment` a trainer sees: no credentials, its GPUs, the hub only if allowed.

    What it says of threads and of CUDA's multi-process service (`CUDA_MPS_…`) is passed on.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES))
        and name not in _WITHHELD_NAMES
    }
    if share.gpus is not None:
        passed["CUDA_VISIBLE_DEVICES"] = share.gpus
    elif share.processes > 1:
        passed["ACCELERATE_USE_CPU"] = "true"
    if share.threads is not None:
        passed.setdefault("OMP_NUM_THREADS", str(share.threads))
    if not allow_hub:
        passed["HF_HUB_OFFLINE"] = "1"
    # Same results in every run, where CUDA's matrix library asks for it.
    passed.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    passed["PYTHONUNBUFFERED"] = "1"
    return passed


class TrainerProcess:
    """One trainer child. Used by one thread at a time.

    The child asks the kernel to kill it when the thread that started it ends (that is what
    `PR_SET_PDEATHSIG` watches), so only a thread that lives as long as the worker may start one.
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
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._write_lock = threading.Lock()
        self.ready: ReadyEvent | None = None
        self.is_up = False
        self.jobs_done = 0
        self.clean = True
        threading.Thread(target=self._read_events, name="trainer-events", daemon=True).start()
        threading.Thread(target=self._read_stderr, name="trainer-stderr", daemon=True).start()

    @property
    def pid(self) -> int:
        """The child's process id, which is its group's id too."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._child.poll() is None

    def wait_ready(self, timeout_seconds: float) -> ReadyEvent:
        """Wait until the child has imported its libraries.

        Raises:
            TrainerDied: it ended, or said nothing for `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        while self.ready is None:
            event = self._next_event(deadline - time.monotonic())
            if event is None:
                self.kill()
                raise TrainerDied(self._how_it_ended("it did not become ready"))
            if isinstance(event, ReadyEvent):
                self.ready = event
        return self.ready

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
        self.clean = False
        self._send(command.line())
        started, stop_sent_at = time.monotonic(), None
        watch = StepWatch(self._stuck_after_seconds)
        while True:
            event = self._next_event(_TICK_SECONDS)
            if event is not None:
                watch.hear(event, time.monotonic())
                ended = self._handle(event, on_event)
                if ended is not None:
                    return ended
            elif not self.alive:
                raise TrainerDied(self._how_it_ended("it ended"))
            now = time.monotonic()
            # Judged only when nothing waits to be heard: storing a checkpoint may take its time.
            if event is None and (silent_seconds := watch.silent_seconds(now)):
                self.kill()
                raise TrainerDied(f"it made no step for {silent_seconds:.0f} seconds")
            if stop_sent_at is None:
                stop = should_stop()
                if stop is None and now - started > time_limit_seconds:
                    stop = StopCommand(reason="time_limit")
                if stop is not None:
                    self._send(stop.line())
                    stop_sent_at = now
            elif now - stop_sent_at > STOP_SECONDS:
                self.kill()
                raise TrainerDied("it did not stop when told to")

    def close(self, timeout_seconds: float = 5.0) -> None:
        """End an idle child: close its input, then kill what is left."""
        with self._write_lock:
            if self._child.stdin and not self._child.stdin.closed:
                try:
                    self._child.stdin.close()
                except OSError:
                    log.debug("trainer_input_was_closed", pid=self.pid)
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

    def _handle(
        self, event: Event, on_event: Callable[[Event], None]
    ) -> FinishedEvent | StoppedEvent | None:
        match event:
            case FinishedEvent() | StoppedEvent():
                self.jobs_done += 1
                self.clean = isinstance(event, FinishedEvent)
                return event
            case FailedEvent():
                if event.detail:
                    log.warning("trainer_failure_detail", detail=event.detail)
                raise JobError(event.code, event.message, transient=event.transient)
            case LogEvent():
                getattr(log, event.level)(event.event, **event.fields)
            case _:
                on_event(event)
        return None

    def _send(self, line: bytes) -> None:
        stdin = self._child.stdin
        assert stdin is not None  # noqa: S101 - opened with PIPE above
        try:
            with self._write_lock:
                stdin.write(line)
                stdin.flush()
        except (OSError, ValueError):
            self._child.wait()
            raise TrainerDied(self._how_it_ended("its pipe is closed")) from None

    def _next_event(self, timeout_seconds: float) -> Event | None:
        try:
            return self._events.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None

    def _read_events(self) -> None:
        assert self._child.stdout is not None  # noqa: S101 - opened with PIPE above
        for line in self._child.stdout:
            try:
                self._events.put(event := parse_event(line))
                self.is_up = self.is_up or isinstance(event, ReadyEvent)
            except ValidationError:
                log.warning("trainer_line_not_understood", line=line[:200].decode(errors="replace"))
        self._events.put(None)

    def _read_stderr(self) -> None:
        assert self._child.stderr is not None  # noqa: S101 - opened with PIPE above
        for line in self._child.stderr:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._stderr.append(text)
                log.debug("trainer_stderr", pid=self.pid, line=text)

    def _how_it_ended(self, otherwise: str) -> str:
        try:
            status = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return otherwise
        log.warning("trainer_ended", pid=self.pid, status=status, stderr=list(self._stderr))
        if status < 0:
            return f"signal {signal.Signals(-status).name}"
        return f"exit status {status}"


class TrainerSlot:
    """One place for a trainer: started early, kept warm across jobs, replaced when used up."""

    def __init__(
        self,
        *,
        share: Share,
        allow_hub: bool,
        max_jobs: int,
        start_timeout_seconds: float,
        command: Sequence[str] = TRAINER_COMMAND,
    ) -> None:
        self._environment = trainer_environment(os.environ, share=share, allow_hub=allow_hub)
        self._max_jobs = max_jobs
        self._start_timeout_seconds = start_timeout_seconds
        self._command = command
        self._trainer: TrainerProcess | None = None

    def warm_up(self) -> None:
        """Have a trainer started, without waiting for it."""
        if self._trainer is None or not self._trainer.alive:
            self._trainer = TrainerProcess(self._environment, command=self._command)
            log.info("trainer_started", pid=self._trainer.pid)

    def trainer(self) -> TrainerProcess:
        """A ready trainer. Raises `TrainerDied` if none can be had."""
        self.warm_up()
        assert self._trainer is not None  # noqa: S101 - warm_up has just set it
        self._trainer.wait_ready(self._start_timeout_seconds)
        return self._trainer

    @property
    def is_up(self) -> bool:
        """Whether a trainer runs here that has said that it is ready; waits for nothing."""
        trainer = self._trainer
        return trainer is not None and trainer.is_up and trainer.alive

    def recycle(self) -> None:
        """After a job: a trainer that failed, ended or served its jobs makes room for a new one."""
        used = self._trainer
        if used is None or (used.alive and used.clean and used.jobs_done < self._max_jobs):
            return
        metrics.TRAINERS_REPLACED.labels(str(used.clean).lower()).inc()
        log.info("trainer_replaced", pid=used.pid, jobs_done=used.jobs_done, clean=used.clean)
        if used.clean:
            used.close()
        else:
            used.kill()
        self._trainer = None
        self.warm_up()

    def close(self) -> None:
        """End the trainer when its slot ends."""
        if self._trainer is not None:
            if self._trainer.clean:
                self._trainer.close()
            self.kill()

    def kill(self) -> None:
        """End the trainer at once, from any thread."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.kill()
