"""When is a terminal webhook tried again? After a rung of a ladder, for about three days."""

#: Delays that the outbox can wait, seconds: each is one queue of the broker.
RUNGS_SECONDS = (30.0, 120.0, 600.0, 3600.0, 21600.0)

#: Delay after each failed try, in order, seconds: up the ladder, then its top to the end.
SCHEDULE_SECONDS = RUNGS_SECONDS + RUNGS_SECONDS[-1:] * 11


def next_delay(attempt: int, retry_after_seconds: float | None = None) -> float | None:
    """How long to wait before the next try, in seconds; None when there is to be none.

    Args:
        attempt: tries made so far, 1 after the first.
        retry_after_seconds: what the receiver asked for. It lengthens the wait, to the next rung
            and at most to the top one, and never shortens it.
    """
    if attempt > len(SCHEDULE_SECONDS):
        return None
    wanted = max(SCHEDULE_SECONDS[attempt - 1], retry_after_seconds or 0.0)
    return next((rung for rung in RUNGS_SECONDS if rung >= wanted), RUNGS_SECONDS[-1])
