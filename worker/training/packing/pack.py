"""Jobs that train in step: each hands in its micro-batch, and one pass serves all.

Every job runs its own training, in a thread of its own, as it would alone; only its passes are
taken here. A pass begins when all who train have handed in. Whoever prepares or exports is not
among them, so jobs join and leave between two passes, and the end of one, whatever it is, is
nothing to the others.
"""

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from worker.contract.pipe import LogEvent
from worker.training.baton import Baton, breathe
from worker.training.launch import forget_passes
from worker.training.packing.packed_seat import Needs, PackedSeat
from worker.training.packing.shared_pass import likeness
from worker.training.seat import ShouldStop, StageReport, waiting
from worker.training.step import Work

#: How often somebody who waits for company or for room looks whether to stop, seconds.
_TICK_SECONDS = 0.1

#: Share of the free memory that is planned with.
_USABLE = 0.9

#: One pass for micro-batches that are alike; returns what `pass_alone` would for each.
Shared = Callable[[Sequence[Work]], list[torch.Tensor]]


class Pack:
    """The seats of one trainer. Its methods are for threads that hold the baton."""

    def __init__(
        self, baton: Baton, shared: Shared, *, slots: int, wait_seconds: float = 0.0
    ) -> None:
        """Make seats for jobs that may share passes.

        Args:
            baton: held by whoever computes.
            shared: makes one pass of several micro-batches.
            slots: jobs at a time.
            wait_seconds: how long a job that is alone waits for another before its first step.
        """
        self.slots = slots
        self._baton, self._shared, self._wait_seconds = baton, shared, wait_seconds
        self._changed = threading.Condition()
        self._seats: list[PackedSeat] = []
        self._in_line: list[object] = []
        self._leads = False
        #: Most micro-batches in one pass; fewer after one that the memory did not suffice for.
        self._most = slots
        self._to_drain = self.drains = False

    @contextmanager
    def seat(
        self, needs: Needs, report: StageReport, should_stop: ShouldStop, *, sociable: bool = True
    ) -> Iterator[PackedSeat]:
        """A place among those who train, from before the first step to after the last.

        There may have to be room first; then a job that is alone waits for company, if it is one
        that can have any (`sociable`). Nobody waits who is to stop.
        """
        self._wait_for_room(needs, report, should_stop)
        seat = PackedSeat(self, needs, report)
        with self._changed:
            taken = {one.number for one in self._seats}
            seat.number = next(n for n in range(len(taken) + 1) if n not in taken)
            self._seats = sorted([*self._seats, seat], key=lambda one: one.number)
            self._changed.notify_all()
        try:
            patience = self._wait_seconds if sociable else 0.0
            self._wait(patience, should_stop, lambda: len(self._seats) > 1)
            yield seat
        finally:
            with self._changed:
                self._seats = [one for one in self._seats if one is not seat]
                self._most = self.slots  # with more room it may go again
                self._changed.notify_all()

    def drain(self) -> None:
        """Have all stop after the same pass; may be called in a signal handler."""
        self._to_drain = True
        if not self._seats:
            self.drains = True

    @property
    def is_shared(self) -> bool:
        """Whether several jobs train now."""
        return len(self._seats) > 1

    def pass_for(self, seat: PackedSeat, work: Work) -> torch.Tensor | None:
        """Hand in a micro-batch and wait for its pass; None if it is to be passed by itself."""
        breathe()  # a job that is alone is asked for nothing else, and others want to join it
        with self._changed:
            seat.work, seat.loss = work, None
            leads = self._may_lead()
        if not leads:
            with self._baton.laid_down(), self._changed:
                self._changed.wait_for(lambda: seat.work is None or self._may_lead())
                leads = seat.work is not None
        if leads:
            self._lead()
        return seat.loss

    @contextmanager
    def away(self, seat: PackedSeat) -> Iterator[None]:
        """Inside, `seat` does not compute and is not waited for."""
        with self.apart(seat), self._baton.laid_down():
            yield

    @contextmanager
    def apart(self, seat: PackedSeat) -> Iterator[None]:
        """Inside, `seat` is not waited for; it computes something of its own, and breathes."""
        with self._changed:
            seat.is_away = True
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                seat.is_away = False

    def _may_lead(self) -> bool:
        """Whether a pass can begin that nobody leads; then the caller does."""
        if self._leads or any(one.work is None and not one.is_away for one in self._seats):
            return False
        self._leads = True
        return True

    def _lead(self) -> None:
        with self._changed:
            present = [one for one in self._seats if one.work is not None]
        self.drains = self.drains or self._to_drain
        try:
            groups: dict[Hashable, list[PackedSeat]] = {}
            for one in present:
                assert one.work is not None  # noqa: S101 - that is what `present` means
                groups.setdefault(likeness(one.work), []).append(one)
            for like, members in groups.items():
                if like is not None:
                    self._pass_together(members)
        finally:
            with self._changed:
                for one in present:
                    one.work = None
                self._leads = False
                self._changed.notify_all()

    def _pass_together(self, members: list[PackedSeat]) -> None:
        """Pass the micro-batches of `members`, in several passes where memory is short.

        Those for whom it cannot be done are left to pass theirs by themselves.
        """
        rest = members
        while len(rest) > 1 and self._most > 1:
            size = math.ceil(len(rest) / math.ceil(len(rest) / self._most))
            some, rest = rest[:size], rest[size:]
            works = [one.work for one in some if one.work is not None]
            for work in works:
                if work.trainee.recorded is not None:
                    forget_passes(work.trainee)  # the memory is for the neighbours
            too_large = False
            try:
                losses = self._shared(works)
            except torch.OutOfMemoryError:
                too_large = True
            except torch.AcceleratorError:
                raise  # the device is of no use to any of them now
            except Exception as error:
                # Of one of them, or of sharing itself: by itself each finds out what is its own.
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
                self._tell(some, "pass_not_shared", reason=reason)
                self._most = 1
                return
            if too_large:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                self._most, rest = len(some) // 2, some + rest
                self._tell(members, "fewer_jobs_in_a_pass", most=self._most)
                continue
            steps = [
                (one.belongs_to, work.trainee.step) for one, work in zip(some, works, strict=True)
            ]
            for one, loss in zip(some, losses, strict=True):
                one.shared(steps, some.index(one), loss)

    def _tell(self, seats: Sequence[PackedSeat], event: str, **fields: Any) -> None:
        for one in seats:
            one.report(LogEvent(level="warning", event=event, fields=fields))

    def _wait_for_room(self, needs: Needs, report: StageReport, should_stop: ShouldStop) -> None:
        me = object()
        self._in_line.append(me)

        def fits() -> bool:
            if self._in_line[0] is not me:
                return False  # or a larger job would be overtaken for ever
            if not self._seats or needs.free is None:
                return True
            others = sum(one.needs.a_pass for one in self._seats)
            return needs.kept + needs.a_pass + others <= _USABLE * needs.free()

        try:
            if not fits():
                needed = needs.kept + needs.a_pass
                with waiting(report, needs_bytes=needed, beside=len(self._seats)):
                    self._wait(math.inf, should_stop, fits)
        finally:
            self._in_line.remove(me)

    def _wait(self, seconds: float, should_stop: ShouldStop, until: Callable[[], bool]) -> None:
        """Wait without the baton until something is so, but no longer than that."""
        waited = 0.0
        while waited < seconds and not until() and not should_stop():
            with self._baton.laid_down(), self._changed:
                self._changed.wait(_TICK_SECONDS)
            waited += _TICK_SECONDS
