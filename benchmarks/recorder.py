"""When was each optimizer step over, and how much memory did the process take?

torch tells every optimizer step of a process to a global hook, so a program is observed without a
change to it.
"""

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

#: (name, seconds of the wall clock, seconds of CPU time of the process), in order.
_marks: list[tuple[str, float, float]] = []


def mark(name: str) -> None:
    """Note that something has just happened."""
    _marks.append((name, time.time(), time.process_time()))


def observe_steps() -> None:
    """Note each optimizer step of this process from now on, when the device has done it."""

    def stepped(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        mark("step")

    register_optimizer_step_post_hook(stepped)


def peak_bytes() -> int:
    """Peak memory: of the GPU's tensors, or of the process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(path: Path) -> None:
    """Leave what was noted for `benchmarks.observation`."""
    path.write_text(json.dumps({"marks": _marks, "peak_bytes": peak_bytes()}))
