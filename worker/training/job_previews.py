"""Which previews does a job get, and when? Some between its steps, all of them after the export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.contract.pipe import TrainCommand
from worker.training.along_the_way import AlongTheWay, points_along
from worker.training.base_model import LoadedBaseModel
from worker.training.drawing import Brush, ShouldStop
from worker.training.export import KOHYA_FILE
from worker.training.file_header import thumbnail_entry
from worker.training.previews import Drawn, Wanted, draw_previews, is_cheap, previews_wanted
from worker.training.safetensors_file import add_to_header
from worker.training.step import Lesson, Trainee


@dataclass(frozen=True)
class JobPreviews:
    """The previews of one job.

    Attributes:
        along: draws between the steps.
        cheap: whether a few cost little beside the training.
    """

    along: AlongTheWay
    brush: Brush
    wanted: Wanted
    cheap: bool

    def draw(self, trainee: Trainee, folder: Path, should_stop: ShouldStop) -> Drawn:
        """Previews of the exported adapter, and the first as the thumbnail in the kohya file.

        The thumbnail is part of the file's bytes, which must not depend on when a worker was told
        to stop. So it is there exactly where it is cheap, and is drawn even then.
        """
        drawn = draw_previews(
            trainee,
            self.brush,
            self.wanted,
            folder=folder,
            should_stop=should_stop,
            first_in_any_case=self.cheap,
        )
        if self.cheap and drawn.first is not None:
            add_to_header(folder / KOHYA_FILE, thumbnail_entry(folder / drawn.first))
        return replace(drawn, left_out=drawn.left_out or self.along.left_out)


def previews_of(
    command: TrainCommand,
    model: LoadedBaseModel,
    trainee: Trainee,
    lesson: Lesson,
    captions: Sequence[str],
    should_stop: Callable[[], object],
) -> JobPreviews:
    """What the job wants drawn; nothing is yet, and what was before an interruption is kept.

    `captions` are those of the pictures that can be used, from which prompts are made.
    """
    rules = command.parameters
    weights = sum(weight.numel() for weight in trainee.unet.parameters())
    cheap = is_cheap(model.arithmetic.device.type, rules.resolution, weights)
    wanted = previews_wanted(rules, captions, command.trigger_word, cheap=cheap)
    brush = Brush(model, lesson.prediction_type, rules.resolution, trainee.accelerator.autocast)
    along = AlongTheWay(
        trainee,
        lesson,
        brush,
        wanted,
        points=points_along(rules, lesson.plan, wanted, cheap=cheap),
        should_stop=should_stop,
    )
    return JobPreviews(along, brush, wanted, cheap)
