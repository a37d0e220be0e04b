"""Named points before and after everything that the real trainer does to the world outside of it.

The product knows nothing of them: its functions are wrapped from here. Importing this imports the
heavy libraries.

| point | what is done between before and after |
|---|---|
| `command` | a line from the supervisor is understood |
| `base-model` | the base model is loaded, or found warm |
| `picture`, `encode` | one picture is read, encoded |
| `step` | one optimizer step |
| `checkpoint-half` | nothing: half of a checkpoint's bytes are written |
| `checkpoint-write` | its bytes are flushed to the disk |
| `checkpoint-rename` | it gets its name |
| `checkpoint-delete` | the one before it is deleted |
| `checkpoint-event`, `stopped-event`, `failed-event`, `finished-event` | the supervisor is told |
| `export`, `verify` | both adapter files are written, loaded back |
| `file` | one of the result's files is written |
"""

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from tests.faults.failpoints import Failpoints
from worker.contract.pipe import Event, TrainCommand
from worker.training import cache, checkpoint, export, images, job, loop, service
from worker.training.base_model import BaseModelShelf

#: Events whose sending is a point; how many of the others there are depends on the clock.
_TOLD = ("checkpoint", "stopped", "failed", "finished")


def install(points: Failpoints) -> None:
    """Lead all that this process does from now on through `points`."""
    for owner, name, point in (
        (service, "parse_command", "command"),
        (BaseModelShelf, "get", "base-model"),
        (images, "read_picture", "picture"),
        (cache, "_posterior", "encode"),
        (loop, "optimizer_step", "step"),
        (job, "export_adapter", "export"),
        (job, "verify_adapter", "verify"),
        (export, "write_whole", "file"),
    ):
        _wrap(points, owner, name, lambda *_, point=point: point)
    _wrap(points, service.Service, "_say", _said)
    _wrap(points, Path, "write_text", lambda path, *_: _if(path.suffix != ".tmp", "file"))
    _wrap(points, Path, "rename", lambda path, *_: _if(_unfinished(path), "checkpoint-rename"))
    _wrap(points, Path, "unlink", lambda path, *_: _if(_finished(path), "checkpoint-delete"))
    _write_in_halves(points)
    flush = _through(points, os.fsync, lambda file: _if(_is_file(file), "checkpoint-write"))
    # A name of its own: other rooms flush other files.
    checkpoint.os = SimpleNamespace(**{**vars(os), "fsync": flush})  # type: ignore[attr-defined]


def checkpoint_every(seconds: int) -> None:
    """Let every job leave a checkpoint so often; 0, after every step, no message may ask for."""
    original = service.run_job

    def often(command: TrainCommand, *args: Any, **kwargs: Any) -> Any:
        rules = command.parameters.model_copy(update={"checkpoint_seconds": seconds})
        return original(command.model_copy(update={"parameters": rules}), *args, **kwargs)

    service.run_job = often


def _wrap(points: Failpoints, owner: Any, name: str, point: Callable[..., str | None]) -> None:
    setattr(owner, name, _through(points, getattr(owner, name), point))


def _through(
    points: Failpoints, original: Callable[..., Any], point: Callable[..., str | None]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        name = point(*args)
        if name is None:
            return original(*args, **kwargs)
        return points.around(name, lambda: original(*args, **kwargs), lambda: None)

    return wrapped


def _write_in_halves(points: Failpoints) -> None:
    original = Path.open

    @functools.wraps(original)
    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = original(self, *args, **kwargs)
        return _Halves(file, points) if _unfinished(self) else file

    Path.open = opened  # type: ignore[method-assign]


class _Halves:
    """A file that is written in two halves with a point between them."""

    def __init__(self, file: BinaryIO, points: Failpoints) -> None:
        self._file, self._points = file, points

    def write(self, body: bytes) -> None:
        self._file.write(body[: len(body) // 2])
        self._file.flush()
        self._points.around("checkpoint-half", lambda: None, lambda: None)
        self._file.write(body[len(body) // 2 :])

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _said(_service: service.Service, event: Event) -> str | None:
    return _if(event.type in _TOLD, f"{event.type}-event")


def _unfinished(path: Path) -> bool:
    return path.name.startswith("step-") and path.suffix == ".tmp"


def _finished(path: Path) -> bool:
    return path.name.startswith("step-") and path.suffix == ".safetensors"


def _is_file(handle: int) -> bool:
    return stat.S_ISREG(os.fstat(handle).st_mode)


def _if(condition: bool, point: str) -> str | None:
    return point if condition else None
