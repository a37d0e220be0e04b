"""`python -m worker.training` is the trainer process; a supervisor starts it and talks to it.

What has to be so before anything else runs: it ends with its supervisor, and nothing but events
goes out on its stdout.
"""

import argparse
import ctypes
import os
import signal
import sys
from typing import BinaryIO, NoReturn

#: Linux's prctl option: a signal when the parent's thread ends.
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process with the thread that started it.

    A parent with the process id 1 is nothing special: in a container it is the supervisor. One that
    ended before we looked has closed our input, which ends the service as well.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the supervisor ended before its trainer began")


def private_event_pipe() -> BinaryIO:
    """Our stdout for events alone; whatever libraries print goes to stderr from now on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def do_without(module: str) -> None:
    """Have `module` not found: what a library imports only because it is there costs memory."""
    sys.modules[module] = None  # type: ignore[assignment] # the import system's word for it


def arguments() -> argparse.Namespace:
    """What the supervisor says of the trainer it starts."""
    parser = argparse.ArgumentParser(prog="python -m worker.training", description=__doc__)
    parser.add_argument("--slots", type=int, default=1, help="jobs that are trained at a time")
    parser.add_argument(
        "--pack-wait-seconds",
        type=float,
        default=0.0,
        help="how long a job waits for another to share its passes, before its first step",
    )
    return parser.parse_args()


def main() -> NoReturn:
    """Serve the process that started us, then end."""
    options = arguments()
    die_with_parent()
    events = private_event_pipe()
    # Accelerate would load it for SageMaker's sake, and a trainer has no network.
    do_without("boto3")
    # Only now: these are the heavy libraries, which may print, and take seconds to import.
    from worker.training.service import serve  # noqa: PLC0415

    serve(
        sys.stdin.buffer,
        events,
        slots=options.slots,
        pack_wait_seconds=options.pack_wait_seconds,
    )


if __name__ == "__main__":
    main()
