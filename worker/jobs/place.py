"""Whose turn is it at a trainer, and may another job be taken for it? One job ahead at most.

A trainer serves twice as many slots of the consumer as it trains jobs at a time. What a job does
before and after its training needs no trainer: while some train, the next one's pictures are
fetched, and while the next ones train, the first ones' files are stored.
"""

import threading
import time
from collections.abc import Callable

import structlog

from worker.jobs.quota import JobQuota
from worker.jobs.sharing import AtTrainer, Trainee
from worker.jobs.trainer_slot import TrainerSlot

log = structlog.get_logger()

#: Slots of the consumer for each job that a trainer has at a time: one trains, one comes or goes.
SLOTS_A_JOB = 2

#: A job that was taken ahead waits so many times `ahead_seconds` before it is given back.
_PATIENCE = 2.0

#: A trainer with room takes another job so long after one that could not join was given back,
#: seconds: by then somebody else may have it, and the next one may join.
_LOOK_AGAIN_SECONDS = 300.0

#: How often a waiting job looks whether it is still wanted, seconds.
_TICK_SECONDS = 0.25


class Place:
    """The turns at one trainer. The broker thread asks, the threads of the slots act.

    Args:
        trainer: the one that all of this is about.
        slots: jobs that it is told to train at a time.
        ahead_seconds: another job is taken when a running one needs no longer than this; 0 to
            wait until the trainer has room.
        changed: called when another job may be taken.
        quota: of all places together; without one, any number of jobs is taken.
    """

    def __init__(
        self,
        trainer: TrainerSlot,
        *,
        ahead_seconds: float,
        changed: Callable[[], None],
        slots: int = 1,
        quota: JobQuota | None = None,
    ) -> None:
        self.trainer = trainer
        self._quota = quota or JobQuota()
        self._slots, self._ahead_seconds, self._changed = slots, ahead_seconds, changed
        self._condition = threading.Condition()
        self._listening: int | None = None
        self._waiting: set[int] = set()
        self._reserved: set[int] = set()
        self._training: dict[int, Trainee] = {}
        self._nearly_done: set[int] = set()
        self._gave_back_at: float | None = None
        self._threads, self._closed = slots * SLOTS_A_JOB, False

    # --- the broker thread

    def priority(self, slot: int) -> int | None:
        """At which priority `slot`, which is free, looks for a message; None: not now.

        One slot looks at a time, and none while a job waits for its turn. Of several workers the
        one whose trainer has the least to do goes first, and last one that looks ahead.
        """
        with self._condition:
            if self._waiting or self._listening not in (None, slot):
                return None
            has_room = self._at_trainer().has_room
            if not (self._looks_again() if has_room else self._looks_ahead()):
                return None
            if self._listening is None and not self._quota.reserve():
                return None
            self._listening = slot
            return -len(self._training) if has_room else -self._slots

    def taken(self, slot: int) -> None:
        """`slot` has a message."""
        with self._condition:
            self._listening = None
            self._waiting.add(slot)
            self._reserved.add(slot)

    # --- the threads of the slots

    def open(self) -> None:
        """A thread of the place has begun; the first has the trainer started."""
        with self._condition:
            self.trainer.warm_up()

    def begin(self, slot: int, job: Trainee) -> bool:
        """Take the turn of `slot`, if it may begin or has begun already."""
        with self._condition:
            if self._training.get(slot) == job:
                return True
            # A job that has waited may turn out to be another kind than it was before.
            if self._training.pop(slot, None) is not None:
                self._waiting.add(slot)
            if not self._at_trainer().may_begin(job):
                return False
            self._training[slot] = job
            self._waiting.discard(slot)
            self._gave_back_at = None
            return True

    def claimed(self, slot: int) -> None:
        """The job of `slot` is ours: one of those that this run may begin."""
        with self._condition:
            if slot in self._reserved:
                self._reserved.discard(slot)
                self._quota.begin()

    def wait(self, slot: int, job: Trainee, unwanted: Callable[[], bool]) -> bool:
        """Take the turn of `slot` when it comes.

        False if `unwanted()` said so meanwhile, or if it did not come in time: no other job is then
        taken before one of those that train has ended.
        """
        until = time.monotonic() + _PATIENCE * self._ahead_seconds
        while not unwanted():
            if self.begin(slot, job):
                return True
            with self._condition:
                if time.monotonic() > until:
                    self._gave_back_at = time.monotonic()
                    return False
                if self._training:
                    self._condition.wait(_TICK_SECONDS)
        return False

    def expect_end(self, slot: int, seconds: float) -> None:
        """The training of `slot` takes about so many more seconds."""
        with self._condition:
            if slot not in self._training or slot in self._nearly_done:
                return
            if seconds >= self._ahead_seconds or self._gave_back_at is not None:
                return
            self._nearly_done.add(slot)
        self._changed()

    def end(self, slot: int) -> None:
        """`slot` needs the trainer no more, if it did; one that failed is replaced."""
        try:
            if slot in self._training:
                self.trainer.recycle()
        except OSError as error:
            # The next job starts one, or fails; this one is done with it.
            log.warning("trainer_not_started", reason=str(error))
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

    def _at_trainer(self) -> AtTrainer:
        return AtTrainer(
            tuple(self._training.values()),
            slots=min(self._slots, self.trainer.slots),
            takes_new=self.trainer.takes_new,
        )

    def _looks_again(self) -> bool:
        """Whether a trainer with room looks for a job, or has just had to give one back."""
        if not self._training or self._gave_back_at is None:
            return True
        return time.monotonic() - self._gave_back_at > _LOOK_AGAIN_SECONDS

    def _looks_ahead(self) -> bool:
        """Whether a trainer without room will soon have some."""
        if self._gave_back_at is not None:
            return False
        if self._at_trainer().joinable:
            return bool(self._nearly_done)
        return self._nearly_done == self._training.keys()

    def _leave(self, slot: int) -> None:
        with self._condition:
            if self._training.pop(slot, None) is not None:
                self._nearly_done.discard(slot)
                self._gave_back_at = None
            elif slot not in self._waiting:
                return
            self._waiting.discard(slot)
            if slot in self._reserved:
                self._reserved.discard(slot)
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

    def begin(self, job: Trainee) -> bool:
        """See `Place.begin`."""
        return self._place.begin(self._slot, job)

    def wait(self, job: Trainee, unwanted: Callable[[], bool]) -> bool:
        """See `Place.wait`."""
        return self._place.wait(self._slot, job, unwanted)

    def claimed(self) -> None:
        """See `Place.claimed`."""
        self._place.claimed(self._slot)

    def expect_end(self, seconds: float) -> None:
        """See `Place.expect_end`."""
        self._place.expect_end(self._slot, seconds)

    def end(self) -> None:
        """See `Place.end`; also for a delivery that never had its turn."""
        self._place.end(self._slot)
