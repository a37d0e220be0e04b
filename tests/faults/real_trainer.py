"""The real trainer with points at which it kills itself: `python -m tests.faults.real_trainer`.

`--fault before:step:3` (or `FAULT`) kills it before the third step; `--journal FILE` (or
`FAULT_JOURNAL`) gets one JSON line for every point that it passes, so that a harness can trace a
whole job and then kill one at each of its points. `tests.faults.trainer_seams` names the points.
`--checkpoint-seconds 0` has it leave a checkpoint after every step, so that short jobs pass those.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from worker.training.__main__ import die_with_parent, private_event_pipe


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default=os.environ.get("FAULT"))
    parser.add_argument("--journal", type=Path, default=os.environ.get("FAULT_JOURNAL"))
    parser.add_argument("--checkpoint-seconds", type=int)
    options = parser.parse_args()
    die_with_parent()
    events = private_event_pipe()
    # Only now, as the product does: these import the heavy libraries, which may print.
    from tests.faults.trainer_seams import Kill, TrainerPoints, checkpoint_every, install
    from worker.training.service import serve

    kill = Kill.parse(options.fault) if options.fault else None
    install(TrainerPoints(kill, Path(options.journal) if options.journal else None))
    if options.checkpoint_seconds is not None:
        checkpoint_every(options.checkpoint_seconds)
    serve(sys.stdin.buffer, events)


if __name__ == "__main__":
    main()
