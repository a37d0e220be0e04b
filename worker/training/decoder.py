"""`python -m worker.training.decoder` decodes strangers' pictures, and can do nothing else.

A decoder is a large program in C that reads what a stranger wrote. So it runs in a process that has
no credentials, writes no file, and may use only so much memory in all and time for each picture.
Requests come on stdin, a line of JSON each; each is answered by a line of JSON and the pixels.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from worker.training.decoding import BadFile, Decoded, decode_file
from worker.training.framing import Framing

#: Memory that pictures may take, bytes. The largest that are decoded take 510 MB at most.
MEMORY_BYTES = 768 * 1024 * 1024

#: Time of the processor for one picture, seconds. The slowest legal ones take 2.5 s.
CPU_SECONDS = 4.5

#: Files that are open at a time: the picture, the pipes, and a few of the interpreter's.
_OPEN_FILES = 64

#: Linux's prctl option: what this process starts can never gain privileges.
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Some decoders print; what they say is a stranger's.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    confine()
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        framing = Framing(tuple((width, height) for width, height in request["sizes"]))
        # Counts the time of the processor; at its end the kernel ends the process (SIGPROF).
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            found = decode_file(request["path"], framing, request["places"])
            answer, pixels = _described(found), _pixels(found)
        except BadFile as error:
            answer, pixels = {"bad": str(error)}, []
        except MemoryError:
            answer, pixels = {"bad": "it takes too much memory to decode"}, []
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answers, answer, pixels)


def confine() -> None:
    """Give up what no picture needs. Cannot be taken back."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, taken + MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, 0)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(kind: int, value: int) -> None:
    # Somebody may have set a lower limit already.
    with contextlib.suppress(ValueError):
        resource.setrlimit(kind, (value, value))


def _described(found: Decoded) -> dict[str, Any]:
    return {
        "format": found.format,
        "width": found.width,
        "height": found.height,
        "changes": found.changes,
        "cuts": [(cut.left, cut.top, cut.right, cut.size) for cut in found.cuts],
        "parts": [part.size for part in found.parts],
        "whole": found.whole.size,
    }


def _pixels(found: Decoded) -> list[bytes]:
    return [image.tobytes() for image in (*found.parts, found.whole)]


def _say(answers: BinaryIO, answer: dict[str, Any], pixels: Sequence[bytes] = ()) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    for one in pixels:
        answers.write(one)
    answers.flush()


if __name__ == "__main__":
    main()
