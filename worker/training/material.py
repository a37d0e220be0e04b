"""What a job brings along: its pictures and captions, read, looked at, encoded, some held out."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.contract.dataset import PictureReport
from worker.contract.parameters import held_out_count
from worker.contract.pipe import ImageFile, TrainCommand
from worker.training.base_model import LoadedBaseModel
from worker.training.cache import Dataset, as_it_is, count_tokens, encode
from worker.training.captions import caption_orders, orders_each
from worker.training.dataset_report import doubled, picture_reports
from worker.training.framing import framing_of
from worker.training.images import Pictures
from worker.training.sampler import held_out

#: Folder in the outputs with a small JPEG of each picture, for the report.
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Material:
    """A job's pictures and captions.

    Attributes:
        pictures: those that can be used, and those that cannot.
        rows: what there is to say of each.
        dataset: the usable ones, encoded.
        held_out: which of these are not trained on.
    """

    pictures: Pictures
    rows: list[PictureReport]
    dataset: Dataset
    held_out: tuple[int, ...]

    @property
    def buckets(self) -> list[int]:
        """How many pictures of each size are trained on."""
        return [len(bucket) for bucket in self.dataset.by_bucket(without=self.held_out)]


def gather(command: TrainCommand, model: LoadedBaseModel, images: Iterable[ImageFile]) -> Material:
    """Read, look at and encode the pictures of a job, one at a time, and its captions.

    Args:
        command: the job.
        model: its base model.
        images: the job's, as they are to be read.

    Raises:
        JobError: `INVALID_IMAGE`, as `Pictures` and `encode` say.
    """
    rules = command.parameters
    framing = framing_of(rules, command.seed)
    thumbnails = Path(command.output_dir) / THUMBNAILS
    thumbnails.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(images, framing, rules.on_bad_image, thumbnails=thumbnails)
    dataset = encode(
        model,
        pictures,
        mirrored=rules.random_flip,
        crops=framing.crops,
        caption_orders=_orders(command),
    )
    rows = picture_reports(
        pictures,
        count_tokens=lambda caption: count_tokens(model, caption),
        most_tokens=model.text_encoders[0].most_tokens,
        thumbnails=thumbnails,
    )
    used = len(pictures.good)
    count = held_out_count(rules.validation_split, used)
    chosen = held_out(command.seed, used, count, doubled=doubled(rows))
    return Material(pictures, rows, dataset, tuple(chosen))


def _orders(command: TrainCommand) -> Callable[[str], Sequence[str]]:
    """The orders of its tags that each caption is trained in."""
    rules = command.parameters
    if not rules.shuffle_captions:
        return as_it_is
    most = orders_each(len({image.caption for image in command.images}))
    return functools.partial(caption_orders, seed=command.seed, kept=rules.keep_tokens, most=most)
