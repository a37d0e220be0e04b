"""Runs a training program in a process of its own and reads what it noted."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import Workload

#: First steps of a process that do not count: memory is found, kernels are chosen.
_WARM_UP = 4


@dataclass(frozen=True)
class Observation:
    """One process. Seconds are of CPU time on a CPU, of the wall clock on a GPU.

    Attributes:
        step_seconds: median after warm-up.
        job_seconds: of the whole job: for the script all of its process, for us from command to
            verified files on a warm trainer.
        first_step_seconds: from command or process start to the end of the first step, wall clock.
        peak_bytes: of the process, or of the GPU's tensors.
    """

    step_seconds: float
    job_seconds: float
    first_step_seconds: float
    peak_bytes: int


def observe_peer(workload: Workload, script: str | None, *, on_gpu: bool) -> Observation:
    """Diffusers' script, or its transcription."""
    if script:
        python = os.environ.get("DIFFUSERS_PYTHON", sys.executable)
        with tempfile.TemporaryDirectory() as output:
            began, notes = _run(python, script, *workload.script_arguments(Path(output)))
    else:
        began, notes = _run(sys.executable, "benchmarks.transcription", *workload.arguments())
    return _observation(notes, ("start", began, 0.0), "end", on_gpu=on_gpu)


def observe_ours(workload: Workload, *, on_gpu: bool) -> Observation:
    """Our second job in a process."""
    _, notes = _run(sys.executable, "benchmarks.our_jobs", *workload.arguments())
    last = max(i for i, (name, _, _) in enumerate(notes["marks"]) if name == "job")
    start = notes["marks"][last]
    notes["marks"] = notes["marks"][last:]
    return _observation(notes, start, "stored", on_gpu=on_gpu)


def _run(python: str, program: str, *arguments: str) -> tuple[float, dict]:
    with tempfile.NamedTemporaryFile(suffix=".json") as notes:
        began = time.time()
        answer = subprocess.run(
            [python, "-m", "benchmarks.observed", notes.name, program, *arguments],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            sys.exit(f"{program} failed:\n{answer.stderr[-3000:]}")
        return began, json.loads(Path(notes.name).read_text())


def _observation(
    notes: dict, start: tuple[str, float, float], end: str, *, on_gpu: bool
) -> Observation:
    clock = 1 if on_gpu else 2
    steps = [mark for mark in notes["marks"] if mark[0] == "step"]
    times = [after[clock] - before[clock] for before, after in itertools.pairwise(steps)]
    [ended] = [mark for mark in notes["marks"] if mark[0] == end]
    return Observation(
        step_seconds=statistics.median(times[_WARM_UP:]),
        job_seconds=ended[clock] - start[clock],
        first_step_seconds=steps[0][1] - start[1],
        peak_bytes=notes["peak_bytes"],
    )
