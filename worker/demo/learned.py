"""Did an adapter learn the style? Samples with and without it, against the training pictures."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from worker.demo.classifier import classify
from worker.demo.drawing_base import load_drawing_model, sample
from worker.demo.hatched import CAPTION
from worker.demo.scenes import SHAPES
from worker.demo.style import Moved, moved, style_of


@dataclass(frozen=True)
class Learned:
    """What was measured on samples of the style's prompts.

    Attributes:
        samples: how many were drawn without the adapter and as many with it.
        moved: how far the style moved.
        shapes: share of the samples with the adapter that show the prompted shape.
        base_shapes: share of those without.
        before, after: the samples.
    """

    samples: int
    moved: Moved
    shapes: float
    base_shapes: float
    before: tuple[Image.Image, ...]
    after: tuple[Image.Image, ...]

    def figures(self) -> dict[str, Any]:
        """The figures by name, rounded."""
        moved = asdict(self.moved)
        measured = {
            **{f"{name}_moved": moved[name] for name in ("style", "colours", "edges")},
            **{f"{name}_distance": moved[name] for name in ("base", "adapted")},
            "shapes_found": self.shapes,
            "base_shapes_found": self.base_shapes,
        }
        return {"samples": self.samples, **{k: round(v, 3) for k, v in measured.items()}}


def measure(
    model: Path, adapter: Path, pictures: Sequence[Path], samples: int, *, seed: int = 1000
) -> Learned:
    """Draw as many samples of the style's prompts with the adapter and without, from equal noise.

    Args:
        model: the base model's folder.
        adapter: a file that plain diffusers loads.
        pictures: the training pictures.
        samples: how many of each; shapes take turns.
        seed: of the noise; the demo's own previews have other seeds.
    """
    shapes = [SHAPES[number % len(SHAPES)] for number in range(samples)]
    random.Random(seed).shuffle(shapes)
    prompts = [CAPTION.format(shape=shape) for shape in shapes]
    pipeline = load_drawing_model(model)
    before = sample(pipeline, prompts, seed=seed)
    pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    after = sample(pipeline, prompts, seed=seed)
    return Learned(
        samples=samples,
        moved=moved(
            style_of(before), style_of(after), style_of(Image.open(path) for path in pictures)
        ),
        shapes=_share(after, shapes),
        base_shapes=_share(before, shapes),
        before=tuple(before),
        after=tuple(after),
    )


def _share(pictures: Sequence[Image.Image], shapes: Sequence[str]) -> float:
    found = [classify(picture).shape for picture in pictures]
    return sum(one == other for one, other in zip(found, shapes, strict=True)) / len(shapes)
