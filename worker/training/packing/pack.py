"""Jobs that train in step: each hands in its micro-batch, and one pass serves all.

Every job runs its own training, in a thread of its own, as it would alone; only its passes are
taken here. A pass begins when all who train have handed in. Whoever prepares or exports is not
among them, so jobs join and leave between two passes, and the end of one, whatever it is, is
nothing to the others.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.contract.pipe import LogEvent
from worker.training.baton import Baton, breathe
from worker.training.launch import prepare_launch
from worker.training.packing.shared_pass import likeness
from worker.training.seat import Report, Seat, ShouldStop
from worker.training.step import Lesson, Trainee, Work, pass_alone

#: How often somebody who waits for company or for room looks whether to stop, seconds.
_TICK_SECONDS = 0.1

#: Share of the free memory that is planned with.
_USABLE = 0.9

#: Passes by itself, one after another, after which a job's pass is recorded anew.
_ALONE_AGAIN = 100

#: One pass for micro-batches that are alike; returns what `pass_alone` would for each.
Shared = Callable[[Sequence[Work]], list[torch.Tensor]]


@dataclass(frozen=True)
class Needs:
    """GPU memory of a job that is about to train, bytes; on a CPU nothing is asked.

    Attributes:
        kept: by itself, whoever else trains. a_pass: for its part of a pass.
        free: what there is now.
    """

    kept: int = 0
    a_pass: int = 0
    free: Callable[[], int] | None = None


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
        self._leads = False
        #: Most micro-batches in one pass; fewer after one that the memory did not suffice for.
        self._most = slots
        self._to_drain = self.drains = False

    @contextmanager
    def seat(self, needs: Needs, report: Report, should_stop: ShouldStop) -> Iterator["PackedSeat"]:
        """A place among those who train, from before the first step to after the last.

        There may have to be room first; then a job that is alone waits for company. Nobody waits
        who is to stop.
        """
        self._wait_for_room(needs, report, should_stop)
        seat = PackedSeat(self, needs, report)
        with self._changed:
            taken = {one.number for one in self._seats}
            seat.number = next(n for n in range(len(taken) + 1) if n not in taken)
            self._seats = sorted([*self._seats, seat], key=lambda one: one.number)
            self._changed.notify_all()
        try:
            self._wait(self._wait_seconds, should_stop, lambda: len(self._seats) > 1)
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

    def pass_for(self, seat: "PackedSeat", work: Work) -> torch.Tensor | None:
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
    def away(self, seat: "PackedSeat") -> Iterator[None]:
        """Inside, `seat` does not compute and is not waited for."""
        with self._changed:
            seat.is_away = True
            self._changed.notify_all()
        try:
            with self._baton.laid_down():
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

    def _pass_together(self, members: list["PackedSeat"]) -> None:
        """Pass the micro-batches of `members`, in several passes where memory is short.

        Those for whom it cannot be done are left to pass theirs by themselves.
        """
        rest = members
        while len(rest) > 1 and self._most > 1:
            size = math.ceil(len(rest) / math.ceil(len(rest) / self._most))
            some, rest = rest[:size], rest[size:]
            works = [one.work for one in some if one.work is not None]
            for work in works:
                work.trainee.recorded = None  # its memory is for the neighbours
            too_large = False
            try:
                losses = self._shared(works)
            except torch.OutOfMemoryError:
                too_large = True
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

    def _tell(self, seats: Sequence["PackedSeat"], event: str, **fields: Any) -> None:
        for one in seats:
            one.report(LogEvent(level="warning", event=event, fields=fields))

    def _wait_for_room(self, needs: Needs, report: Report, should_stop: ShouldStop) -> None:
        def fits() -> bool:
            if not self._seats or needs.free is None:
                return True
            others = sum(one.needs.a_pass for one in self._seats)
            return needs.kept + needs.a_pass + others <= _USABLE * needs.free()

        if fits():
            return
        fields = {"needs_bytes": needs.kept + needs.a_pass, "beside": len(self._seats)}
        report(LogEvent(event="job_waits_for_room", fields=fields))
        self._wait(math.inf, should_stop, fits)

    def _wait(self, seconds: float, should_stop: ShouldStop, until: Callable[[], bool]) -> None:
        """Wait without the baton until something is so, but no longer than that."""
        waited = 0.0
        while waited < seconds and not until() and not should_stop():
            with self._baton.laid_down(), self._changed:
                self._changed.wait(_TICK_SECONDS)
            waited += _TICK_SECONDS


class PackedSeat(Seat):
    """The place of a job among others.

    Attributes:
        number: order in a pass.
        needs: its memory.
        work: its micro-batch that waits for a pass. loss: what came of the last one; None if it
            has to be passed by itself.
        is_away: whether it is not to be waited for.
    """

    def __init__(self, pack: Pack, needs: Needs, report: Report) -> None:
        """Take a seat of `pack`; `report` is told of what becomes of its passes."""
        self._pack, self.needs, self.report = pack, needs, report
        self.number = 0
        self.work: Work | None = None
        self.loss: torch.Tensor | None = None
        self.is_away = False
        self._last: tuple[Sequence[tuple[str, int]], int] = (), 0
        self._passes = self._companions = self._alone = 0
        self._prepare: Callable[[], None] = lambda: None

    def prepare(self, trainee: Trainee, lesson: Lesson, report: Report) -> None:
        """Record a pass as planned while there is nobody to share it with; compile nothing."""
        if lesson.plan.compiled:
            lesson.plan = replace(lesson.plan, compiled=False)
            reason = "a trainer with several slots does not compile"
            report(LogEvent(level="warning", event="steps_stay_eager", fields={"reason": reason}))
        self._prepare = lambda: prepare_launch(trainee, lesson, report)
        if not self._pack.is_shared:
            self._prepare()

    def take_part(self, work: Work) -> torch.Tensor:
        """Pass a micro-batch with those of the others, or by itself; as `run_pass`."""
        self._passes += 1
        loss = self._pack.pass_for(self, work)
        if loss is not None:
            return loss
        self._companions += 1
        self._last = (), 0
        self._alone += 1
        begins = work.trainee.adapter.buffer.grad is None
        if self._alone >= _ALONE_AGAIN and begins and work.trainee.recorded is None:
            self._alone = 0
            if work.lesson.plan.recorded:
                self._prepare()
        return pass_alone(work)

    def shared(self, members: Sequence[tuple[str, int]], place: int, loss: torch.Tensor) -> None:
        """Its micro-batch went through at `place` among those of `members`.

        Each is told by its job's fingerprint and the steps that it had done.
        """
        self.loss, self._alone = loss, 0
        self._companions += len(members)
        self._last = members, place

    def away(self) -> AbstractContextManager[None]:
        """Inside, the others go on without it."""
        return self._pack.away(self)

    @property
    def company(self) -> str | None:
        """Its place in the last pass, and who was beside it and how far."""
        members, place = self._last
        if len(members) < 2:
            return None
        own = members[place][1]
        beside = [(mark, step - own) for mark, step in [*members[:place], *members[place + 1 :]]]
        digest = hashlib.sha256(repr(beside).encode()).hexdigest()[:12]
        return f"{place + 1} of {len(members)} beside {digest}"

    def summary(self) -> dict[str, Any]:
        """Slots of the trainer, and how many jobs shared a pass of this one, itself included."""
        mean = self._companions / self._passes if self._passes else 1.0
        return {"packing": {"slots": self._pack.slots, "mean_company": round(mean, 2)}}
