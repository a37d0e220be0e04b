"""A case of the campaign: a name, and a play that ends in counts."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.checker import Counts
from tests.faults.scene import Lab


@dataclass(frozen=True)
class Case:
    """One fault, played once.

    Attributes:
        kind: which of the campaign's kinds it belongs to.
        play: acts it out; raises if the fault did not happen or nothing came to an end.
        alone: nothing else may use the broker meanwhile.
        heavy: it starts a broker of its own, which takes a processor for seconds: few at a time.
    """

    kind: str
    name: str
    play: Callable[[Lab], Counts]
    alone: bool = False
    heavy: bool = False


def expect(counts: Counts, truth: object, finding: str) -> None:
    """Note what a case wanted to see beyond the journals, and did not."""
    if not truth:
        counts.findings.append(f"unexpected: {finding}")
