"""Where are a job's passes made? By itself, unless its trainer has other jobs that share them."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from worker.contract.pipe import LogEvent, StageEvent, TrainCommand
from worker.training.base_model import LoadedBaseModel
from worker.training.launch import prepare_launch
from worker.training.loop import StopReason
from worker.training.step import Lesson, Trainee, Work, pass_alone

ShouldStop = Callable[[], StopReason | None]

Report = Callable[[LogEvent], None]

#: Told of waiting too, which is a stage.
StageReport = Callable[[LogEvent | StageEvent], None]


@contextmanager
def waiting(report: StageReport, **fields: int) -> Iterator[None]:
    """Inside, a job waits for others to leave; its time limit does not count that."""
    report(StageEvent(stage="waiting", status="started", fields=fields))
    began = time.monotonic()
    yield
    waited = time.monotonic() - began
    report(StageEvent(stage="waiting", status="ended", seconds=waited))


class Seat:
    """The place of a job that trains by itself.

    Attributes:
        belongs_to: the job's fingerprint.
    """

    belongs_to: str = ""

    def prepare(self, trainee: Trainee, lesson: Lesson, report: Report) -> None:
        """Before the first step: decide how steps reach the device."""
        prepare_launch(trainee, lesson, report)

    def take_part(self, work: Work) -> torch.Tensor:
        """Pass a micro-batch; as `run_pass`."""
        return pass_alone(work)

    def apart(self) -> AbstractContextManager[None]:
        """Inside, the job computes what is no pass; nobody waits for it."""
        return nullcontext()

    def away(self) -> AbstractContextManager[None]:
        """Inside, the job does what needs no device and no random state."""
        return nullcontext()

    @property
    def company(self) -> str | None:
        """Whom the last pass was shared with and how, which its rounding depends on; or None."""
        return None

    def summary(self) -> dict[str, Any]:
        """What a finished job says of its company; nothing where it could have none."""
        return {}


#: Gives a job that is about to train its place.
Seated = Callable[
    [TrainCommand, LoadedBaseModel, Lesson, StageReport, ShouldStop], AbstractContextManager[Seat]
]


@contextmanager
def by_itself(*_: object) -> Iterator[Seat]:
    """A place where there are no others."""
    yield Seat()
