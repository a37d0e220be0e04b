"""The process that decodes a job's pictures: started, asked, believed only so far, ended."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from worker.contract.dataset import Change
from worker.contract.errors import ErrorCode, JobError
from worker.contract.text import printable
from worker.training.decoder import CPU_SECONDS
from worker.training.decoding import MAX_PIXELS, MIN_SIDE, WHOLE_SIDE, BadFile, Decoded
from worker.training.framing import Cut, Framing

#: Longest time for a start and for one picture, seconds: a machine may have much else to do.
START_SECONDS = 60.0
PICTURE_SECONDS = 120.0

#: Longest line of an answer, bytes, and longest reason that is passed on, characters.
_LINE_BYTES, _REASON = 16 * 1024, 200

#: Bytes taken from the pipe at once.
_CHUNK_BYTES = 1024 * 1024

#: Time that the process has to be seen as ended once its pipe is closed, seconds.
_END_SECONDS = 5.0

_COMMAND = (sys.executable, "-m", "worker.training.decoder")

_Size = tuple[Annotated[int, Field(ge=1, le=MAX_PIXELS)], Annotated[int, Field(ge=1)]]


class _Answer(BaseModel):
    """What the process says of a picture; it may have been taken over by one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = Field(pattern=r"\A[A-Z]{3,4}\z")
    width: int = Field(ge=MIN_SIDE, le=MAX_PIXELS)
    height: int = Field(ge=MIN_SIDE, le=MAX_PIXELS)
    changes: tuple[Change, ...]
    cuts: tuple[tuple[int, int, int, _Size], ...] = Field(min_length=1)
    parts: tuple[_Size, ...] = Field(min_length=1)
    whole: _Size


class _Refusal(BaseModel):
    """Why a picture cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bad: str


_ANSWERS: TypeAdapter[_Answer | _Refusal] = TypeAdapter(_Answer | _Refusal)


class DecoderProcess:
    """Decodes files one at a time, on one thread; a context manager.

    What a picture does to the process costs that picture alone: the next one gets a new process.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        """Start it; it gets ready while the caller goes on."""
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: _Pipe | None = None

    def __enter__(self) -> "DecoderProcess":
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._child.pid if self._child is not None else None

    def decode(self, path: str, framing: Framing, places: Sequence[float]) -> Decoded:
        """As `worker.training.decoding.decode_file`.

        Raises:
            BadFile: the picture cannot be used, or did harm to the process.
            JobError: there is no process to be had; that is not the picture's fault.
        """
        if self._child is None or self._child.poll() is not None:
            self._start()
        assert self._child is not None and self._child.stdin is not None  # noqa: S101, PT018
        pipe = self._wait_ready()
        request = {"path": path, "sizes": framing.sizes, "places": list(places)}
        deadline = time.monotonic() + PICTURE_SECONDS
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            return _read_answer(pipe, framing, deadline)
        except (OSError, EOFError, ValueError) as problem:
            # `ValueError`: pydantic's too. Whoever answers so is not our program any more.
            raise self._verdict(problem) from None

    def _start(self) -> None:
        self._end()
        self._child = subprocess.Popen(  # noqa: S603 - our own program, no shell
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One thread: it decodes one picture at a time, and each would reserve memory.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            bufsize=0,
        )
        self._pipe = None

    def _wait_ready(self) -> "_Pipe":
        if self._pipe is None:
            assert self._child is not None and self._child.stdout is not None  # noqa: S101, PT018
            pipe = _Pipe(self._child.stdout.fileno())
            try:
                pipe.line(time.monotonic() + START_SECONDS)
            except (OSError, EOFError) as problem:
                self._end()
                raise _unavailable(f"it does not start ({type(problem).__name__})") from None
            self._pipe = pipe
        return self._pipe

    def _verdict(self, problem: Exception) -> BadFile | JobError:
        """What it means that there was no answer; ends what is left of the process."""
        assert self._child is not None  # noqa: S101 - it was asked
        if isinstance(problem, TimeoutError):
            self._end()
            return BadFile(f"it was not decoded within {PICTURE_SECONDS:g} seconds")
        if isinstance(problem, ValueError):
            self._end()
            return BadFile("it is damaged: the program that decodes it gave no answer")
        try:
            status = self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        self._end()
        if status == -signal.SIGPROF:
            return BadFile(f"it takes more than {CPU_SECONDS:g} seconds to decode")
        if status == -signal.SIGKILL:
            return _unavailable("somebody killed it: is the machine out of memory?")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return BadFile(f"it is damaged: the program that decodes it ended with {how}")

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


class _Pipe:
    """Reads what arrives, within a deadline of the monotonic clock."""

    def __init__(self, number: int) -> None:
        self._number, self._rest = number, b""
        self._poll = select.poll()
        self._poll.register(number, select.POLLIN)

    def line(self, deadline: float) -> bytes:
        """One line. Raises `EOFError`, `TimeoutError`, or `ValueError` if it is long."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE_BYTES:
                raise ValueError("the line does not end")
            self._rest += self._more(deadline)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def exactly(self, count: int, deadline: float) -> bytes:
        """So many bytes. Raises as `line`."""
        chunks, missing = [self._rest[:count]], count - len(self._rest[:count])
        self._rest = self._rest[count:]
        while missing > 0:
            chunk = self._more(deadline)
            chunks.append(chunk[:missing])
            self._rest = chunk[missing:]
            missing -= len(chunk[:missing])
        return b"".join(chunks)

    def _more(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0 or not self._poll.poll(1000 * left):
            raise TimeoutError
        if not (chunk := os.read(self._number, _CHUNK_BYTES)):
            raise EOFError
        return chunk


def _read_answer(pipe: _Pipe, framing: Framing, deadline: float) -> Decoded:
    answer = _ANSWERS.validate_json(pipe.line(deadline))
    if isinstance(answer, _Refusal):
        raise BadFile(printable(answer.bad, _REASON))
    if not set(answer.parts) <= set(framing.sizes) or max(answer.whole) > WHOLE_SIDE:
        raise ValueError("that is not what was asked for")
    images = []
    for size in (*answer.parts, answer.whole):
        pixels = pipe.exactly(3 * size[0] * size[1], deadline)
        images.append(Image.frombytes("RGB", size, pixels))
    return Decoded(
        format=answer.format,
        parts=tuple(images[:-1]),
        cuts=tuple(Cut(left, top, right, size) for left, top, right, size in answer.cuts),
        whole=images[-1],
        width=answer.width,
        height=answer.height,
        changes=answer.changes,
    )


def _unavailable(why: str) -> JobError:
    return JobError(
        ErrorCode.TRAINING_FAILED,
        f"The program that decodes pictures cannot be used: {why}; the job is tried again.",
        transient=True,
    )
