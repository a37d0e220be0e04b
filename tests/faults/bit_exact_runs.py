"""The cases of `tests.faults.bit_exact`, in the process that has the heavy libraries.

`python -m tests.faults.bit_exact_runs FOLDER` prints one JSON line a case.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.forked_jobs import (
    RULES,
    Attempt,
    Site,
    attempt,
    fork,
    new_site,
    newest_checkpoint,
    wait_for,
    with_moments_zeroed,
)

STEPS = RULES["max_train_steps"]
PRECISIONS = ("no", "bf16")
_SHOWN = {"no": "fp32", "bf16": "bf16"}

#: Cases that run at once.
_PARALLEL = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """One case: where each process of a job is killed, but for its last one.

    Attributes:
        resumes_at: the step of the newest whole checkpoint after the last kill; 0 if there is none.
    """

    precision: str
    kills: tuple[str, ...]
    resumes_at: int

    @property
    def name(self) -> str:
        return f"{_SHOWN[self.precision]}, killed {', then '.join(self.kills)}"


def killed_jobs(precision: str) -> Iterator[Killed]:
    """Every step and every stage of every checkpoint; twice in one job; before the export."""
    for step in range(1, STEPS + 1):
        yield Killed(precision, (f"after:step:{step}",), step - 1)
    for step in range(1, STEPS):
        for kill in ("after:checkpoint-half", "before:checkpoint-rename"):
            yield Killed(precision, (f"{kill}:{step}",), step - 1)
        yield Killed(precision, (f"after:checkpoint-rename:{step}",), step)
    yield Killed(precision, ("after:step:3", "after:step:2"), 3)
    yield Killed(precision, ("before:export:1",), STEPS - 1)


def run_killed(site: Site, case: Killed, whole: Attempt, name: str) -> Row:
    """Kill, go on, and hold the adapter against the one of the job that was left alone."""
    done, found = 0, None
    for number, kill in enumerate(case.kills):
        one = attempt(
            site, f"{name}/{number}", precision=case.precision, kill=kill, **_every(found)
        )
        if not one.killed:
            return _row(case.name, f"{kill} was never reached")
        done += one.steps
        found = newest_checkpoint(site, f"{name}/{number}") or found
    last = attempt(site, f"{name}/last", precision=case.precision, **_every(found))
    redone = done + last.steps - STEPS
    at, exactly = last.metadata.get("resumed_at_step", 0), last.metadata["resumed_exactly"]
    problem = None
    if last.sha256 != whole.sha256:
        problem = f"the adapter is {last.sha256[:12]}, uninterrupted {whole.sha256[:12]}"
    elif exactly is not True:
        problem = f"it says that it is inexact: {last.metadata.get('resumed_inexactly_because')}"
    elif at != case.resumes_at:
        problem = f"it went on at step {at} instead of {case.resumes_at}"
    return _row(case.name, problem, f"went on at step {at}, {last.sha256[:12]}", redone)


def forgets_the_gradients(site: Site, whole: Attempt, name: str) -> Row:
    """A resume that loses part of the state must not give the same adapter."""
    attempt(site, f"{name}/0", precision="no", kill="after:step:4", **_every(None))
    found = newest_checkpoint(site, f"{name}/0")
    assert found is not None
    last = attempt(site, f"{name}/last", precision="no", **_every(with_moments_zeroed(found)))
    problem = "the adapter is the same" if last.sha256 == whole.sha256 else None
    if last.metadata.get("resumed_at_step") != 3:
        problem = "the checkpoint was not used"
    return _row("control: moments lost, another adapter", problem, last.sha256[:12])


def is_of_another_job(site: Site, whole: Attempt, name: str) -> Row:
    """A checkpoint of another seed is refused; the job begins anew, and ends as if alone."""
    attempt(site, f"{name}/0", precision="no", kill="after:step:4", **_every(None), seed=8)
    found = newest_checkpoint(site, f"{name}/0")
    assert found is not None
    last = attempt(site, f"{name}/last", precision="no", **_every(found))
    refused = last.metadata["resumed"] is False and last.sha256 == whole.sha256
    problem = None if refused else "another job's checkpoint was used"
    return _row("control: another seed's checkpoint, refused", problem, last.sha256[:12])


def has_other_threads(site: Site, _whole: Attempt, name: str) -> Row:
    """A resume with another number of threads says that it is not exact."""
    attempt(site, f"{name}/0", precision="no", kill="after:step:4", **_every(None))
    found = newest_checkpoint(site, f"{name}/0")
    last = attempt(site, f"{name}/last", precision="no", **_every(found), threads=2)
    because = last.metadata.get("resumed_inexactly_because", "")
    problem = None if "number of threads" in because else "it says that it is exact"
    return _row("control: other threads, said to be inexact", problem, because)


def rows(folder: Path) -> Iterator[Row]:
    """Run them all, some at a time, and give each as it ends, in order."""
    site = new_site(folder)
    whole = {
        precision: attempt(site, f"whole-{precision}", precision=precision, checkpoint_seconds=3600)
        for precision in PRECISIONS
    }
    runs: list[Callable[..., Row]] = [
        partial(run_killed, site, case, whole[precision])
        for precision in PRECISIONS
        for case in killed_jobs(precision)
    ]
    runs += [
        partial(control, site, whole["no"])
        for control in (forgets_the_gradients, is_of_another_job, has_other_threads)
    ]
    running: deque[tuple[int, Path]] = deque()
    for number, run in enumerate(runs):
        if len(running) == _PARALLEL:
            yield _ended(*running.popleft())
        answer = folder / f"{number}.json"
        task = partial(_write, answer, partial(run, name=f"case-{number}"))
        running.append((fork(task), answer))
    while running:
        yield _ended(*running.popleft())


def _write(answer: Path, run: Callable[[], Row]) -> None:
    answer.write_text(json.dumps(run()))


def _ended(child: int, answer: Path) -> Row:
    status = wait_for(child)
    if status != 0:
        return _row(answer.stem, f"the case itself ended with exit status {status}")
    row: Row = json.loads(answer.read_text())
    return row


def _every(resume_from: Path | None) -> dict[str, Any]:
    """A checkpoint after every step."""
    return {"checkpoint_seconds": 0, "resume_from": resume_from}


def _row(name: str, problem: str | None, detail: str = "", steps_redone: int = 0) -> Row:
    return {
        "name": name,
        "ok": problem is None,
        "detail": problem or detail,
        "steps_redone": steps_redone,
    }


if __name__ == "__main__":
    for row in rows(Path(sys.argv[1])):
        print(json.dumps(row), flush=True)
