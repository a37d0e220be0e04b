"""What a job brings along: its pictures and captions, read, looked at, encoded, some held out."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.contract.dataset import PictureReport, counts
from worker.contract.parameters import held_out_count
from worker.contract.pipe import ImageFile, TrainCommand
from worker.training.base_model import LoadedBaseModel
from worker.training.cache import Dataset, as_it_is, count_tokens, encode
from worker.training.captions import caption_orders, orders_each
from worker.training.conditioning import text_bytes
from worker.training.dataset_report import doubled, picture_reports
from worker.training.framing import framing_of
from worker.training.images import Pictures
from worker.training.prior import Prior
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
        class_rows: what there is to say of each picture of the class.
        prior: which of the dataset these are, with prior preservation.
    """

    pictures: Pictures
    rows: list[PictureReport]
    dataset: Dataset
    held_out: tuple[int, ...]
    class_rows: list[PictureReport]
    prior: Prior | None

    @property
    def buckets(self) -> list[int]:
        """How many pictures of each size are trained on."""
        of_class = self.prior.companions.pictures if self.prior else ()
        found = self.dataset.by_bucket(without={*self.held_out, *of_class})
        return [len(bucket) for bucket in found]


def gather(
    command: TrainCommand,
    model: LoadedBaseModel,
    images: Iterable[ImageFile],
    class_images: Iterable[ImageFile] = (),
) -> Material:
    """Read, look at and encode the pictures of a job, one at a time, and its captions.

    Args:
        command: the job.
        model: its base model.
        images: the job's, as they are to be read.
        class_images: those of the class, likewise; with prior preservation there are some.

    Raises:
        JobError: `INVALID_IMAGE`, as `Pictures` and `encode` say.
    """
    rules = command.parameters
    framing = framing_of(rules, command.seed)
    thumbnails = Path(command.output_dir) / THUMBNAILS
    thumbnails.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(images, framing, rules.on_bad_image, thumbnails=thumbnails)
    of_class = Pictures(
        class_images, framing, rules.on_bad_image, thumbnails=thumbnails, after=pictures
    )
    with_prior = rules.with_prior_preservation
    dataset = encode(
        model,
        itertools.chain(pictures, of_class if with_prior else ()),
        mirrored=rules.random_flip,
        crops=framing.crops,
        caption_orders=_orders(command, model, pictures),
    )
    rows, class_rows = (
        picture_reports(
            some,
            count_tokens=lambda caption: count_tokens(model, caption),
            most_tokens=model.text_encoders[0].most_tokens,
            thumbnails=thumbnails,
        )
        for some in (pictures, of_class)
    )
    used = len(pictures.good)
    count = held_out_count(rules.validation_split, used)
    chosen = held_out(command.seed, used, count, doubled=doubled(rows))
    prior = None
    if with_prior:
        places = range(used, used + len(of_class.good))
        made = not command.class_images
        prior = Prior(dataset, places, rules.prior_loss_weight, made=made)
    return Material(pictures, rows, dataset, tuple(chosen), class_rows, prior)


def prior_facts(material: Material) -> dict[str, Any]:
    """What the `complete` webhook says of prior preservation; nothing where there was none."""
    if material.prior is None:
        return {}
    found = counts(material.class_rows)
    return {"class_pictures": {**found, "made": bool(material.prior.made)}}


def _orders(
    command: TrainCommand, model: LoadedBaseModel, pictures: Pictures
) -> Callable[[str], Sequence[str]]:
    """The orders of its tags that each caption is trained in, once all pictures are read."""
    rules = command.parameters
    if not rules.shuffle_captions:
        return as_it_is
    each = text_bytes(model.family, model.unet.config)

    def orders(caption: str) -> Sequence[str]:
        most = orders_each(len(set(pictures.captions)), each)
        return caption_orders(caption, seed=command.seed, kept=rules.keep_tokens, most=most)

    return orders
