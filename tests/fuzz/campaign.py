"""Try many inputs at one door, and say in one line of JSON what they cost and what went wrong."""

import hashlib
import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: An input that takes longer is a hang, seconds of the processor.
HANG_SECONDS = 5.0

#: Where inputs that broke something are kept.
KEPT = Path("build/fuzz")

#: Broken inputs that are told of one by one.
_TOLD = 20


@dataclass
class Tally:
    """What a campaign found.

    Attributes:
        kind: which door.
        outcomes: how many inputs ended how.
        broken: crashes and broken promises, a line each.
        slowest_seconds, slowest: of one input, time of the processor, and which.
        memory_bytes: most memory that the process at the door had in use.
    """

    kind: str
    seed: int
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    hangs: int = 0
    slowest_seconds: float = 0.0
    slowest: str = ""
    memory_bytes: int = 0
    memory_limit_bytes: int = 0

    @property
    def clean(self) -> bool:
        """Nothing broke, nothing hung, nothing took more memory than it may."""
        return not (self.broken or self.hangs or self.memory_bytes > self.memory_limit_bytes)

    def line(self, seconds: float) -> str:
        """The summary, one JSON object."""
        return json.dumps(
            {
                "kind": self.kind,
                "seed": self.seed,
                "inputs": self.inputs,
                "outcomes": dict(self.outcomes.most_common()),
                "crashes": len(self.broken),
                "hangs": self.hangs,
                "slowest_seconds": round(self.slowest_seconds, 3),
                "slowest": self.slowest,
                "memory_mib": self.memory_bytes // 2**20,
                "memory_limit_mib": self.memory_limit_bytes // 2**20,
                "seconds": round(seconds),
            }
        )


def play(
    kind: str,
    inputs: Iterator[tuple[str, bytes]],
    door: Callable[[bytes], str],
    *,
    seed: int,
    count: int,
    memory_limit_bytes: int,
    cpu_seconds: Callable[[], float] = time.process_time,
    memory_bytes: Callable[[], int] = lambda: memory_of_this_process(),
) -> Tally:
    """Try `count` inputs.

    Args:
        kind: names the door.
        inputs: what is tried, each with a few words on what it is.
        door: says how an input ended; raises if a promise is broken.
        seed: what the inputs were made from.
        count: how many of them.
        memory_limit_bytes: most that the process at the door may have in use.
        cpu_seconds: time that it has used so far.
        memory_bytes: the most memory that it had so far.
    """
    tally = Tally(kind, seed, memory_limit_bytes=memory_limit_bytes)
    for _ in range(count):
        what, body = next(inputs)
        tally.inputs += 1
        before = cpu_seconds()
        try:
            tally.outcomes[door(body)] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kept = keep(kind, body)
            tally.broken.append(f"{what}: {error!r} at {where.name}:{where.lineno}; {kept}")
            if len(tally.broken) <= _TOLD:
                print(tally.broken[-1], file=sys.stderr, flush=True)
        took = cpu_seconds() - before
        if took > tally.slowest_seconds:
            tally.slowest_seconds = took
            tally.slowest = f"{what}, {len(body)} bytes"
        if took > HANG_SECONDS:
            tally.hangs += 1
            print(f"hang of {took:.1f} s: {what}; {keep(kind, body)}", file=sys.stderr, flush=True)
        tally.memory_bytes = max(tally.memory_bytes, memory_bytes())
    return tally


def keep(kind: str, body: bytes) -> Path:
    """Write an input down, so that it can become a test."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{kind}-{hashlib.sha256(body).hexdigest()[:12]}"
    path.write_bytes(body)
    return path


def memory_of_this_process() -> int:
    """The most that it had in use so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mutated(body: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """`body` with a few bytes flipped, lost, doubled, made extreme, or exchanged with others'."""
    changed = bytearray(body)
    for _ in range(dice.choice((1, 1, 2, 3, 8, 32))):
        if not changed:
            break
        place = dice.randrange(len(changed))
        length = min(len(changed) - place, dice.choice((1, 2, 4, 16, 256)))
        match dice.randrange(8):
            case 0:
                changed[place] ^= 1 << dice.randrange(8)
            case 1:
                changed[place] = dice.randrange(256)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * dice.choice((1, 2, 50))
            case 4:
                changed[place : place + length] = dice.choice((b"\x00", b"\xff")) * length
            case 5:
                changed[place:place] = dice.randbytes(length)
            case 6:
                del changed[place:]
            case 7:
                other = dice.choice(others)
                start = dice.randrange(len(other))
                changed[place : place + length] = other[start : start + length]
    return bytes(changed)
