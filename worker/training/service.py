"""The trainer process: jobs in on stdin, events out on the pipe, one JSON object a line.

Of a trainer with several processes the first one serves; the others follow.
"""

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import BinaryIO, NoReturn

from pydantic import ValidationError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    Event,
    FailedEvent,
    LogEvent,
    ReadyEvent,
    StopCommand,
    TrainCommand,
    parse_command,
)
from worker.training.base_model import BaseModelShelf
from worker.training.device import device_memory_bytes, device_name, this_device
from worker.training.job import run_job
from worker.training.loop import StopReason
from worker.training.ranks import Ranks, join
from worker.training.result import versions

#: What the first process says to the others in place of a job when it ends.
_NO_MORE = "no more"

#: How long the first process has to say what was wrong before another one's end is its own.
_LAST_WORDS_SECONDS = 5.0


class Service:
    """Reads commands on a thread of its own, trains on the main one."""

    def __init__(self, commands: BinaryIO, events: BinaryIO, ranks: Ranks) -> None:
        self._commands, self._events, self._ranks = commands, events, ranks
        self._jobs: queue.SimpleQueue[TrainCommand | None] = queue.SimpleQueue()
        self._stop: StopReason | None = None
        self._busy = False
        self._terminated = False
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
            )
        )
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        shelf = BaseModelShelf()
        while (command := self._jobs.get()) is not None:
            ended = self._train(command, shelf)
            # Free before the word is out: whoever hears it may send the next job at once.
            self._busy, self._stop = False, None
            self._say(ended)
            # Optimizer and scaler hold each other, and with them memory of the device.
            gc.collect()
            if self._terminated:
                break
        self._ranks.from_first(_NO_MORE)
        return EXIT_CHECKPOINTED if self._terminated else 0

    def terminate(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM: finish the step, leave a checkpoint, end."""
        self._terminated, self._stop = True, "drain"
        if not self._busy:
            self._jobs.put(None)

    def _train(self, command: TrainCommand, shelf: BaseModelShelf) -> Event:
        shelf.allow_hub = command.allow_hub
        self._ranks.from_first(command)
        about = {"job_id": command.job_id}
        try:
            ended = run_job(
                command,
                shelf,
                this_device(),
                report=lambda event: self._say(event.model_copy(update=about)),
                should_stop=lambda: self._ranks.from_first(self._stop),
                ranks=self._ranks,
            )
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
        except Exception as error:
            return FailedEvent(
                job_id=command.job_id,
                code=ErrorCode.TRAINING_FAILED,
                message=f"The training failed unexpectedly ({type(error).__name__}); the operator "
                "finds the details in the worker's log.",
                detail=traceback.format_exc(),
            )

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
                if self._busy:
                    self._stop = command.reason
            elif self._busy:
                fields = {"job_id": command.job_id}
                self._say(LogEvent(level="error", event="command_while_busy", fields=fields))
            else:
                self._busy = True
                self._jobs.put(command)
        # The supervisor is gone or done with us. Nobody would hear of a running job's end.
        if self._busy:
            os._exit(EXIT_CHECKPOINTED)
        self._jobs.put(None)

    def _say(self, event: Event) -> None:
        with self._write_lock:
            self._events.write(event.line())
            self._events.flush()


def follow(ranks: Ranks) -> NoReturn:
    """Make the steps of the first process's jobs with it, until it has no more; then end.

    What ends a job here ends it there as well, and is said there. Where it does not, our end is
    the trainer's, and the job is tried again.
    """
    # A terminal's Ctrl-C is for the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shelf = BaseModelShelf()
    while (word := ranks.from_first(None)) != _NO_MORE:
        if not isinstance(word, TrainCommand):
            continue  # whether to stop, asked after our last step
        shelf.allow_hub = word.allow_hub
        try:
            run_job(
                word,
                shelf,
                this_device(),
                report=lambda event: None,
                should_stop=lambda: ranks.from_first(None),
                ranks=ranks,
            )
        except Exception:
            traceback.print_exc()
            time.sleep(_LAST_WORDS_SECONDS)
            os._exit(1)
        gc.collect()
    os._exit(0)


def serve(commands: BinaryIO, events: BinaryIO) -> NoReturn:
    """Serve the process that started us, then end."""
    ranks = join()
    if not ranks.is_first:
        follow(ranks)
    service = Service(commands, events, ranks)
    signal.signal(signal.SIGTERM, service.terminate)
    # A terminal's Ctrl-C is for the supervisor, which tells us what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = service.run()
    # The listening thread may still wait for input: the interpreter's own shutdown would abort on
    # the lock that it holds. Every event is flushed by now.
    sys.stderr.flush()
    os._exit(status)
