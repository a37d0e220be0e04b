"""A job that is ours: what it asks for, where it stands, and whether it was told to stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worker.contract.base_model import BaseModelEntry
from worker.contract.job import TrainingJob
from worker.contract.pipe import StageEvent, StepEvent, StopCommand
from worker.jobs.record import CheckpointPointer, JobRecord
from worker.storage.images import FetchedImage


class Interrupted(Exception):  # noqa: N818 - not an error
    """The job was told to stop between two steps of ours; nothing needs saving."""

    def __init__(self, command: StopCommand) -> None:
        super().__init__(command.reason)
        self.command = command


@dataclass
class Claimed:
    """A job that is ours: what it asks for, and where it stands.

    Attributes:
        on_event: told of stages and steps, for progress.
        on_checkpoint: told of each checkpoint's step, and whether it was stored.
        should_stop: looked at between and in stages.
        checkpoint: the newest checkpoint's pointer and its etag, moved on as checkpoints are
            stored.
        fetched: its pictures, if they were fetched before it was ours.
        alone: it shares its passes with no other job.
    """

    job: TrainingJob
    epoch: int
    record: JobRecord
    folder: Path
    base_model: BaseModelEntry
    on_event: Callable[[StageEvent | StepEvent], None]
    should_stop: Callable[[], StopCommand | None]
    checkpoint: tuple[CheckpointPointer, str] | None
    fetched: Sequence[FetchedImage] | None = None
    alone: bool = False
    stage_seconds: dict[str, float] = field(default_factory=dict)
    on_checkpoint: Callable[[int, bool], None] = lambda _step, _stored: None

    def stop_here(self) -> None:
        """Raise `Interrupted` if the job was told to stop."""
        if command := self.should_stop():
            raise Interrupted(command)
