"""The real trainer with failpoints: `python -m tests.faults.real_trainer FOLDER FAULT`.

`FAULT` is as `Fault.text()` gives it, or empty. Every point that it passes is noted in `FOLDER`;
`tests.faults.trainer_seams` names the points. `--checkpoint-seconds 0` has it leave a checkpoint
after every step, so that short jobs pass those. The worker adds what it asks of a trainer of
several jobs.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from tests.faults.failpoints import Failpoints, Fault
from worker.training.__main__ import die_with_parent, private_event_pipe


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("fault")
    parser.add_argument("--checkpoint-seconds", type=int)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--pack-wait-seconds", type=float, default=0.0)
    options = parser.parse_args()
    die_with_parent()
    events = private_event_pipe()
    # Only now, as the product does: these import the heavy libraries, which may print.
    from tests.faults.trainer_seams import checkpoint_every, install
    from worker.training.service import serve

    install(Failpoints("trainer", Fault.parse(options.fault), options.folder))
    if options.checkpoint_seconds is not None:
        checkpoint_every(options.checkpoint_seconds)
    serve(
        sys.stdin.buffer,
        events,
        slots=options.slots,
        pack_wait_seconds=options.pack_wait_seconds,
    )


if __name__ == "__main__":
    main()
