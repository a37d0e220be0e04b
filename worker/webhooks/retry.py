"""When is a terminal webhook tried again? After a rung of a ladder, for about three days."""

from dataclasses import dataclass

#: Delays that the outbox can wait, seconds: each is one queue of the broker.
RUNGS_SECONDS = (30.0, 120.0, 600.0, 3600.0, 21600.0)

#: A receiver that was away for so long is given up, seconds.
TOTAL_SECONDS = 3 * 86_400.0


@dataclass(frozen=True)
class RetrySchedule:
    """Up the ladder, then its top until the total is reached.

    Attributes:
        rungs_seconds: the ladder, shortest first. total_seconds: least sum of all waits.
    """

    rungs_seconds: tuple[float, ...] = RUNGS_SECONDS
    total_seconds: float = TOTAL_SECONDS

    @property
    def tries(self) -> int:
        """Tries after the first one."""
        left, top = self.total_seconds - sum(self.rungs_seconds), self.rungs_seconds[-1]
        return len(self.rungs_seconds) + max(0, -int(-left // top))

    def next_delay(self, attempt: int, retry_after_seconds: float | None = None) -> float | None:
        """How long to wait before the next try, in seconds; None when there is to be none.

        Args:
            attempt: tries made so far, 1 after the first.
            retry_after_seconds: what the receiver asked for. It lengthens the wait, to the next
                rung and at most to the top one, and never shortens it.
        """
        if attempt > self.tries:
            return None
        rungs = self.rungs_seconds
        wanted = max(rungs[min(attempt, len(rungs)) - 1], retry_after_seconds or 0.0)
        return next((rung for rung in rungs if rung >= wanted), rungs[-1])
