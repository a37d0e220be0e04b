"""A fault at one exact point of a process: before or after the n-th side effect of a name.

The product knows nothing of this. Its side effects all go through a few seams, and a process of
the campaign wraps those from outside (`tests.faults.seams`, `tests.faults.trainer`).
"""

import errno
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tests.json_lines import json_lines

Process = Literal["supervisor", "trainer"]
Side = Literal["before", "after"]
Action = Literal["kill", "stop", "term", "fail", "fail_for_good", "no_space", "hang"]

#: What a process does to itself.
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, in which process, at which point.

    Attributes:
        side: `before` the effect; or `after` it, whose answer then is lost.
        point: name of the side effect, such as `store.write lease`.
        n: its how-many-th occurrence in the process, from 1.
    """

    process: Process
    action: Action
    side: Side
    point: str
    n: int = 1

    def __str__(self) -> str:
        return f"{self.process}: {self.action} {self.side} {self.point} #{self.n}"

    def text(self) -> str:
        """For a command line or an environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str | None) -> "Fault | None":
        """What `text()` gave; nothing for an empty text."""
        return cls(**json.loads(text)) if text else None


class Failpoints:
    """Notes every point that its process passes, and strikes at the one it is armed for.

    A fault strikes once in a folder, whichever process comes first, so that a process that is
    started again goes through; `fail_for_good` strikes on for as long as that process lives.
    """

    def __init__(self, process: Process, fault: Fault | None, folder: Path) -> None:
        self._process = process
        self._fault = fault if fault and fault.process == process else None
        self._journal, self._mark = folder / "points.jsonl", folder / "fault-fired"
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()

    def around(self, point: str, do: Callable[[], _T], failed: Callable[[], _T]) -> _T:
        """Do it, or what `failed` does where the fault says so."""
        with self._lock:
            self._passed[point] += 1
            n = self._passed[point]
        if self._strikes("before", point, n):
            return failed()
        answer = do()
        if self._strikes("after", point, n):
            return failed()
        return answer

    def _strikes(self, side: Side, point: str, n: int) -> bool:
        """Whether the caller is to fail here; what ends or stops the process happens in here."""
        with self._lock, self._journal.open("a") as file:
            row = {"process": self._process, "side": side, "point": point, "n": n}
            file.write(json.dumps(row) + "\n")
        fault = self._fault
        if fault is None or (fault.side, fault.point) != (side, point) or n < fault.n:
            return False
        if not self._fire(fault, n):
            return False
        if fault.action == "stop":
            # To this thread: one for the whole process goes to the main thread, and this one would
            # go on until that has had its turn at a processor.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            return False
        if number := _SIGNALS.get(fault.action):
            os.kill(os.getpid(), number)
            return False
        if fault.action == "hang":
            time.sleep(3600)
        if fault.action == "no_space":
            raise OSError(errno.ENOSPC, "No space left on device")
        return True

    def _fire(self, fault: Fault, n: int) -> bool:
        if n == fault.n:
            try:
                with self._mark.open("x") as file:
                    file.write(str(os.getpid()))
            except FileExistsError:
                pass
            else:
                return True
        return fault.action == "fail_for_good" and self._mark_is_ours()

    def _mark_is_ours(self) -> bool:
        return self._mark.exists() and self._mark.read_text() == str(os.getpid())


def points_passed(folder: Path) -> list[tuple[Process, str, int]]:
    """Every point that processes with this folder went through, in order, without repeats."""
    rows = json_lines(folder / "points.jsonl")
    return list(dict.fromkeys((row["process"], row["point"], row["n"]) for row in rows))
