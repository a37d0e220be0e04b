"""What a check of the worker's surroundings found: a verdict and one sentence for a person."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, `warning` (jobs run, but look at it), `failed` (they cannot)."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    sentence: str


def ok(check: str, sentence: str) -> Finding:
    """All is well here."""
    return Finding(check, "ok", sentence)


def warning(check: str, sentence: str) -> Finding:
    """Jobs run, but somebody should look at it."""
    return Finding(check, "warning", sentence)


def failed(check: str, sentence: str) -> Finding:
    """Jobs cannot run."""
    return Finding(check, "failed", sentence)
