"""What do processes cost? Processor time and memory, as the kernel counts them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Memory:
    """Of one process, MiB.

    Attributes:
        rss: resident pages, shared ones counted in full.
        pss: resident pages, each shared one divided by those who share it: these add up.
    """

    rss: float
    pss: float


def memory(pids: Iterable[int]) -> list[Memory]:
    """Of each process."""
    found = (psutil.Process(pid).memory_full_info() for pid in pids)
    return [Memory(info.rss / 2**20, info.pss / 2**20) for info in found]


def cpu_seconds(pid: int) -> float:
    """Processor time of one process without its children, since its start."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def children_cpu_seconds(pid: int) -> float:
    """Processor time of a process' children, those included that have ended."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    ended = times.children_user + times.children_system
    return ended + sum(cpu_seconds(child.pid) for child in process.children())


def children(pids: Sequence[int]) -> list[int]:
    """The living children of these processes."""
    return [child.pid for pid in pids for child in psutil.Process(pid).children()]


def threads(pid: int) -> int:
    """Threads of a process now."""
    return psutil.Process(pid).num_threads()
