"""How does the base keep what it knows of a class? Its pictures are trained beside the job's.

Prior preservation of DreamBooth (arXiv:2208.12242, eq. 2) as in diffusers' `train_dreambooth_lora`:
beside each picture of a step goes one of the class, with the class's prompt, and the loss is
`mean over pictures + prior_loss_weight · mean over pictures of the class`.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from worker.contract.pipe import ImageFile, TrainCommand
from worker.training.base_model import LoadedBaseModel
from worker.training.cache import Dataset
from worker.training.drawing import Brush, ShouldStop, at_rest, draw
from worker.training.sampler import Companions, derived_seed

#: What addresses of pictures that the base draws of the class begin with.
_CLASS_PICTURES = "class"


class Prior:
    """The pictures of the class among those that are encoded.

    Attributes:
        companions: which one goes beside which picture.
        weights: what a sample of each picture counts in the loss, `[N]` for each bucket.
        made: how many were drawn by the base, the last ones of the dataset.
    """

    def __init__(self, dataset: Dataset, pictures: range, weight: float, *, made: bool) -> None:
        """Take the dataset, which of it are pictures of the class, and their weight."""
        self.companions = Companions(pictures, lambda picture: dataset.place_of(picture)[0])
        self.made = len(pictures) if made else 0
        self.weights = tuple(
            torch.tensor(
                [weight if picture in pictures else 1.0 for picture in bucket.pictures],
                device=dataset.device,
            )
            for bucket in dataset.buckets
        )


def class_files(
    command: TrainCommand, model: LoadedBaseModel, should_stop: ShouldStop
) -> Iterator[ImageFile]:
    """The pictures of the class: those of the message, else drawn by the base, one at a time.

    What is drawn follows from the seed, the prompt and the base alone. It goes through a file and
    is read as any other picture is, so that the 8 bits of a picture are what is trained on.

    Args:
        command: the job.
        model: its base model, without an adapter.
        should_stop: called before each step of the sampler, to raise where it is to stop.

    Raises:
        torch.OutOfMemoryError: the GPU is too small to draw at this resolution.
    """
    rules = command.parameters
    if command.class_images or not rules.with_prior_preservation:
        yield from command.class_images
        return
    prompt = rules.class_prompt or ""
    brush = Brush(model, rules.prediction_type or model.prediction_type, rules.resolution)
    with tempfile.TemporaryDirectory(dir=command.output_dir) as folder:
        for number in range(rules.num_class_images):
            path = Path(folder) / f"{number:04d}.png"
            with at_rest(model):
                seed = derived_seed(command.seed, "class picture", number)
                draw(brush, prompt, seed, should_stop).save(path)
            yield ImageFile(
                index=len(command.images) + number,
                path=str(path),
                source=f"{_CLASS_PICTURES}/{path.name}",
                caption=prompt,
                caption_source="message",
            )
            path.unlink()
