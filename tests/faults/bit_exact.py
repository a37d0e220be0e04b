"""A job killed anywhere and gone on with elsewhere ends as if it had been left alone, bit for bit.

`python -m tests.faults.bit_exact` prints a table. A job of six steps with everything that a resume
must get right, in fp32 and in bf16, with a checkpoint after every step, is killed after every step
and around and in the middle of every checkpoint's writing; another process goes on from the newest
whole file. Controls show that the comparison can fail.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.case import Case
from tests.faults.checker import Counts
from tests.faults.scene import Lab

KIND = "bit-exact resume"


def bit_exact_cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Every case as it ends: `name`, `ok`, `detail`, `steps_redone`.

    They run in a process of their own, which has one thread and can fork; the caller's may have
    many, and is spared the heavy libraries.

    Args:
        folder: for all that the jobs write; made if it does not exist.

    Raises:
        RuntimeError: the process of the cases ended before its last case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "stderr").open("w+") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.bit_exact_runs", str(folder)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
        if process.wait() != 0:
            stderr.seek(0)
            raise RuntimeError(
                f"the cases ended with {process.returncode}: {stderr.read()[-2000:]}"
            )


def case() -> Case:
    """All of them, as one case of the campaign."""
    return Case(KIND, "killed at every step, fp32 and bf16", _play)


def _play(lab: Lab) -> Counts:
    counts = Counts()
    for one in bit_exact_cases(lab.folder / "bit-exact"):
        counts.steps_redone += one["steps_redone"]
        if not one["ok"]:
            counts.blame("inexact", f"{one['name']}: {one['detail']}")
    return counts


def main() -> int:
    began, failed, count = time.monotonic(), 0, 0
    # A killed process leaves in memory what it has written: this is no test of the disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for case in bit_exact_cases(Path(folder)):
            count, failed = count + 1, failed + (not case["ok"])
            mark = "ok    " if case["ok"] else "FAILED"
            print(f"{mark}  {case['name']:<58}  {case['steps_redone']} redone  {case['detail']}")
    print(f"{count} cases, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
