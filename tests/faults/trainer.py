"""The stand-in trainer with failpoints around all that it does outside of its memory.

`python -m tests.faults.trainer STEP_SECONDS CHECKPOINT_STEPS FOLDER FAULT`, and what the worker
adds for a trainer of several jobs. Every step is noted in `FOLDER/steps.jsonl`, so that steps which
were done twice can be counted.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import standin_trainer as standin
from tests.faults.failpoints import Failpoints, Fault
from worker.contract.pipe import Event, StepEvent


def main() -> None:
    folder, fault = Path(sys.argv[3]), Fault.parse(sys.argv[4])
    points = Failpoints("trainer", fault, folder)
    standin.say = _noted(standin.say, points, folder)
    _wrap(points, "write_text", "checkpoint-write")
    _wrap(points, "rename", "checkpoint-rename")
    _wrap(points, "write_bytes", "export-write")
    standin.main()


def _noted(say: Callable[[Event], None], points: Failpoints, folder: Path) -> Callable[..., None]:
    def noted(event: Event) -> None:
        point = f"say {event.type}"
        if isinstance(event, StepEvent):
            row = {"job_id": event.job_id, "step": event.step}
            with (folder / "steps.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            point = f"step {event.step}"
        points.around(point, lambda: say(event), lambda: None)

    return noted


def _wrap(points: Failpoints, method: str, point: str) -> None:
    original = getattr(Path, method)

    @functools.wraps(original)
    def wrapped(self: Path, *args: Any, **kwargs: Any) -> Any:
        return points.around(point, lambda: original(self, *args, **kwargs), lambda: None)

    setattr(Path, method, wrapped)


if __name__ == "__main__":
    main()
