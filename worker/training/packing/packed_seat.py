"""One job's side of a pack: what it hands in, what came of it, and who was beside it."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from worker.contract.pipe import LogEvent
from worker.training.launch import prepare_launch
from worker.training.seat import Report, Seat
from worker.training.step import Lesson, Trainee, Work, pass_alone

if TYPE_CHECKING:
    from worker.training.packing.pack import Pack

#: Passes by itself, one after another, after which a job's pass is recorded anew.
_ALONE_AGAIN = 100


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


class PackedSeat(Seat):
    """The place of a job among others.

    Attributes:
        number: order in a pass.
        needs: its memory.
        work: its micro-batch that waits for a pass. loss: what came of the last one; None if it
            has to be passed by itself.
        is_away: whether it is not to be waited for.
    """

    def __init__(self, pack: "Pack", needs: Needs, report: Report) -> None:
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

    def apart(self) -> AbstractContextManager[None]:
        """Inside, the others are passed without it whenever it breathes."""
        return self._pack.apart(self)

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
