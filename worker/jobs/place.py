"""Whose turn is it at a trainer, and may another job be taken for it? One job ahead at most.

A trainer serves two slots of the consumer. What a job does before and after its training needs no
trainer: while one job trains, the next one's pictures are fetched, and while the next one trains,
this one's files are stored.
"""

import threading
import time
from collections.abc import Callable

from worker.jobs.quota import JobQuota
from worker.jobs.trainer_process import TrainerSlot

#: Slots of the consumer that a trainer serves: one job trains, one comes or goes.
SLOTS_A_TRAINER = 2

#: Consumer priority of a slot whose trainer is busy: a worker with a free one goes first.
_AHEAD_PRIORITY = -1

#: A job that was taken ahead waits so many times `ahead_seconds` before it is given back.
_PATIENCE = 2.0

#: How often a waiting job looks whether it is still wanted, seconds.
_TICK_SECONDS = 0.25


class Place:
    """The turns at one trainer. The broker thread asks, the threads of the slots act.

    Args:
        trainer: the one that all of this is about.
        ahead_seconds: another job is taken when the running one needs no longer than this; 0 to
            wait until the trainer is free.
        changed: called when another job may be taken.
        quota: of all places together; without one, any number of jobs is taken.
    """

    def __init__(
        self,
        trainer: TrainerSlot,
        *,
        ahead_seconds: float,
        changed: Callable[[], None],
        quota: JobQuota | None = None,
    ) -> None:
        self.trainer = trainer
        self._quota = quota or JobQuota()
        self._ahead_seconds, self._changed = ahead_seconds, changed
        self._condition = threading.Condition()
        self._listening: int | None = None
        self._waiting: int | None = None
        self._training: int | None = None
        self._nearly_done = self._gave_back = False
        self._threads, self._closed = SLOTS_A_TRAINER, False

    # --- the broker thread

    def priority(self, slot: int) -> int | None:
        """At which priority `slot`, which is free, looks for a message; None: not now.

        One slot looks at a time, and none while a job waits for its turn.
        """
        with self._condition:
            if self._waiting is not None or self._listening not in (None, slot):
                return None
            if self._training is not None and not self._nearly_done:
                return None
            if self._listening is None and not self._quota.reserve():
                return None
            self._listening = slot
            return 0 if self._training is None else _AHEAD_PRIORITY

    def taken(self, slot: int) -> None:
        """`slot` has a message."""
        with self._condition:
            self._listening, self._waiting = None, slot

    # --- the threads of the slots

    def open(self) -> None:
        """A thread of the place has begun; the first has the trainer started."""
        with self._condition:
            self.trainer.warm_up()

    def begin(self, slot: int) -> bool:
        """Take the turn of `slot`, if it is free or has been taken for it already."""
        with self._condition:
            if self._training is None:
                self._quota.begin()
                self._training, self._waiting = slot, None
                self._nearly_done = self._gave_back = False
            return self._training == slot

    def wait(self, slot: int, unwanted: Callable[[], bool]) -> bool:
        """Take the turn of `slot` when it comes.

        False if `unwanted()` said so meanwhile, or if it did not come in time: no other job is then
        taken before the one that trains has ended.
        """
        until = time.monotonic() + _PATIENCE * self._ahead_seconds
        while not unwanted():
            if self.begin(slot):
                return True
            with self._condition:
                if time.monotonic() > until:
                    self._gave_back, self._nearly_done = True, False
                    return False
                if self._training is not None:
                    self._condition.wait(_TICK_SECONDS)
        return False

    def expect_end(self, slot: int, seconds: float) -> None:
        """The training of `slot` takes about so many more seconds."""
        with self._condition:
            if self._training != slot or self._nearly_done or self._gave_back:
                return
            self._nearly_done = seconds < self._ahead_seconds
            if not self._nearly_done:
                return
        self._changed()

    def end(self, slot: int) -> None:
        """`slot` needs the trainer no more, if it did; one that failed is replaced."""
        try:
            if self._training == slot:
                self.trainer.recycle()
        finally:
            self._leave(slot)

    def close(self) -> None:
        """A thread of the place is done; returns, and ends the trainer, once all are.

        A trainer dies with the thread that started it, and each of them may have.
        """
        with self._condition:
            self._threads -= 1
            if self._threads:
                self._condition.wait_for(lambda: self._closed)
                return
        self.trainer.close()
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _leave(self, slot: int) -> None:
        with self._condition:
            if slot not in (self._training, self._waiting):
                return
            if self._training == slot:
                self._training = None
            if self._waiting == slot:
                self._waiting = None
                self._quota.give_back()
            self._condition.notify_all()
        self._changed()


class Turn:
    """One delivery's side of its place."""

    def __init__(self, place: Place, slot: int) -> None:
        self._place, self._slot = place, slot

    @property
    def trainer(self) -> TrainerSlot:
        """The trainer of the place; to be used between `begin` or `wait` and `end` alone."""
        return self._place.trainer

    def begin(self) -> bool:
        """See `Place.begin`."""
        return self._place.begin(self._slot)

    def wait(self, unwanted: Callable[[], bool]) -> bool:
        """See `Place.wait`."""
        return self._place.wait(self._slot, unwanted)

    def expect_end(self, seconds: float) -> None:
        """See `Place.expect_end`."""
        self._place.expect_end(self._slot, seconds)

    def end(self) -> None:
        """See `Place.end`; also for a delivery that never had its turn."""
        self._place.end(self._slot)
