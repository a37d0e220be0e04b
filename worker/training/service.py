"""The trainer process: jobs in on stdin, events out on the pipe, one JSON object a line.

Of a trainer with several processes the first one serves; the others follow.
"""

import functools
import gc
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO, NoReturn

import torch
from pydantic import ValidationError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    Event,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    ReadyEvent,
    StopCommand,
    StoppedEvent,
    TrainCommand,
    parse_command,
)
from worker.training.base_model import BaseModelShelf
from worker.training.device import device_memory_bytes, device_name, this_device
from worker.training.following import NO_MORE, follow
from worker.training.job import run_job
from worker.training.loop import StopReason
from worker.training.packing.together import Together
from worker.training.ranks import Ranks, join
from worker.training.result import versions
from worker.training.seat import Seat


class _Running:
    """A job that runs, and why it is to stop if it is."""

    def __init__(self) -> None:
        self.stop: StopReason | None = None
        self.seated = False


class Service:
    """Reads commands on a thread of its own; trains on the main one, or each job on its own.

    With one slot there is one job at a time, on the main thread. With several they share the device
    and their passes (`packing`).
    """

    def __init__(
        self,
        commands: BinaryIO,
        events: BinaryIO,
        ranks: Ranks,
        *,
        slots: int = 1,
        pack_wait_seconds: float = 0.0,
    ) -> None:
        """Serve on these pipes.

        Args:
            commands: from the supervisor.
            events: to it.
            ranks: who else trains the same jobs; then there is one slot.
            slots: jobs at a time.
            pack_wait_seconds: how long a job that is alone waits for company before it trains.
        """
        self._commands, self._events, self._ranks = commands, events, ranks
        self._slots, self._pack_wait_seconds = slots, pack_wait_seconds
        self._jobs: queue.SimpleQueue[TrainCommand | None] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._terminated = False
        self._together: Together | None = None
        self._write_lock = threading.Lock()

    def run(self) -> int:
        """Serve until the input ends; returns the exit status."""
        device = this_device()
        self._say(
            ReadyEvent(
                pid=os.getpid(),
                device=device.type,
                device_name=device_name(device),
                device_memory_bytes=device_memory_bytes(device),
                versions=versions(),
                slots=self._slots,
            )
        )
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        shelf = BaseModelShelf()
        if self._slots > 1:
            self._serve_together(shelf)
        else:
            self._serve_one_by_one(shelf)
        self._ranks.from_first(NO_MORE)
        return EXIT_CHECKPOINTED if self._terminated else 0

    def terminate(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM: finish the step, leave a checkpoint, end."""
        self._terminated = True
        if self._together is not None:
            self._together.pack.drain()
        if not self._running:
            self._jobs.put(None)

    def _serve_one_by_one(self, shelf: BaseModelShelf) -> None:
        while (command := self._jobs.get()) is not None:
            shelf.allow_hub = command.allow_hub
            self._ranks.from_first(command)
            ended = self._outcome(command, functools.partial(self._train_alone, command, shelf))
            self._end(command, ended)
            if self._terminated:
                break

    def _train_alone(
        self, command: TrainCommand, shelf: BaseModelShelf, report: Callable[[Event], None]
    ) -> FinishedEvent | StoppedEvent | None:
        running = self._running[command.job_id]
        return run_job(
            command,
            shelf,
            this_device(),
            report=report,
            should_stop=lambda: self._ranks.from_first(self._stop_of(running)),
            ranks=self._ranks,
        )

    def _serve_together(self, shelf: BaseModelShelf) -> None:
        self._together = together = Together(
            shelf, slots=self._slots, wait_seconds=self._pack_wait_seconds
        )
        threads: list[threading.Thread] = []
        while (command := self._jobs.get()) is not None:
            shelf.allow_hub = command.allow_hub
            threads = [thread for thread in threads if thread.is_alive()]
            thread = threading.Thread(
                target=self._train_together,
                args=(together, command),
                name=command.job_id,
                daemon=True,
            )
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join()

    def _train_together(self, together: Together, command: TrainCommand) -> None:
        running = self._running[command.job_id]

        def should_stop() -> StopReason | None:
            return self._stop_of(running)

        @contextmanager
        def seated(*args: Any) -> Iterator[Seat]:
            with together.seated(*args) as seat:
                # Who comes to train when all are to stop does not begin.
                running.seated = not self._terminated
                yield seat
                running.seated = False

        def train(report: Callable[[Event], None]) -> FinishedEvent | StoppedEvent | None:
            with together.job(command, report, should_stop) as shelf:
                return run_job(
                    command,
                    shelf,
                    this_device(),
                    report=report,
                    should_stop=should_stop,
                    seated=seated,
                )

        self._end(command, self._outcome(command, train))
        if self._terminated and not self._running:
            self._jobs.put(None)

    def _stop_of(self, running: _Running) -> StopReason | None:
        """Why a job is to stop; those that train in step are drained after the same step."""
        if running.stop is not None:
            return running.stop
        if running.seated and self._together is not None:
            return "drain" if self._together.pack.drains else None
        return "drain" if self._terminated else None

    def _outcome(
        self,
        command: TrainCommand,
        train: Callable[[Callable[[Event], None]], FinishedEvent | StoppedEvent | None],
    ) -> Event:
        """How a job ended, in the words of the pipe."""
        about = {"job_id": command.job_id}
        try:
            ended = train(lambda event: self._say(event.model_copy(update=about)))
            assert ended is not None  # noqa: S101 - this is the first process
            return ended.model_copy(update=about)
        except JobError as error:
            return FailedEvent(
                job_id=command.job_id,
                code=error.code,
                message=error.message,
                transient=error.transient,
                detail=traceback.format_exc() if error.__cause__ else "",
            )
        except torch.AcceleratorError:
            # Nothing computes in this process any more: its end is tried again, an error is not.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        except Exception as error:
            return FailedEvent(
                job_id=command.job_id,
                code=ErrorCode.TRAINING_FAILED,
                message=f"The training failed unexpectedly ({type(error).__name__}); the operator "
                "finds the details in the worker's log.",
                detail=traceback.format_exc(),
            )

    def _end(self, command: TrainCommand, ended: Event) -> None:
        # Free before the word is out: whoever hears it may send the next job at once.
        del self._running[command.job_id]
        self._say(ended)
        # Optimizer and scaler hold each other, and with them memory of the device.
        gc.collect()

    def _listen(self) -> None:
        for line in self._commands:
            try:
                command = parse_command(line)
            except ValidationError as error:
                problem = {
                    "problems": error.error_count(),
                    "line": line[:200].decode("utf-8", "replace"),
                }
                self._say(LogEvent(level="error", event="command_not_understood", fields=problem))
                continue
            if isinstance(command, StopCommand):
                for job_id, running in list(self._running.items()):
                    if command.job_id in (None, job_id):
                        running.stop = command.reason
            elif len(self._running) >= self._slots or command.job_id in self._running:
                busy = "command_while_busy"
                self._say(LogEvent(job_id=command.job_id, level="error", event=busy))
            else:
                self._running[command.job_id] = _Running()
                self._jobs.put(command)
        # The supervisor is gone or done with us. Nobody would hear of a running job's end.
        if self._running:
            os._exit(EXIT_CHECKPOINTED)
        self._jobs.put(None)

    def _say(self, event: Event) -> None:
        with self._write_lock:
            self._events.write(event.line())
            self._events.flush()


def serve(
    commands: BinaryIO, events: BinaryIO, *, slots: int = 1, pack_wait_seconds: float = 0.0
) -> NoReturn:
    """Serve the process that started us, then end; the arguments are those of `Service`."""
    ranks = join()
    if not ranks.is_first:
        follow(ranks)
    # One job on several devices has them to itself.
    slots = slots if ranks.count == 1 else 1
    service = Service(commands, events, ranks, slots=slots, pack_wait_seconds=pack_wait_seconds)
    signal.signal(signal.SIGTERM, service.terminate)
    # A terminal's Ctrl-C is for the supervisor, which tells us what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = service.run()
    # The listening thread may still wait for input: the interpreter's own shutdown would abort on
    # the lock that it holds. Every event is flushed by now.
    sys.stderr.flush()
    os._exit(status)
