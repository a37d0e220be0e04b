"""The base model that the demo trains on: small, but it can draw. It comes with the package.

How it was made: `worker.demo.from_scratch`. What it is: its card, `drawing_model/README.md`.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from worker.demo.scenes import COLOURS, SHAPES

#: Where it lies, in diffusers' layout.
DRAWING_MODEL = Path(__file__).parent / "drawing_model"

#: Steps and guidance of samples. The worker's previews have the same steps and guidance 7.5, which
#: makes this model's colours and lines harsher.
STEPS, GUIDANCE = 25, 3.0

#: Samples that are drawn at a time.
_BATCH = 20


def load_drawing_model(folder: Path = DRAWING_MODEL) -> StableDiffusionPipeline:
    """The pipeline, in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_prompts(count: int, seed: int) -> list[tuple[str, str, str, str]]:
    """Prompts such as "a red circle on a white background", each with its three names."""
    rng = random.Random(f"prompts:{seed}")
    prompts = []
    for _ in range(count):
        shape, (colour, background) = rng.choice(SHAPES), rng.sample(sorted(COLOURS), 2)
        first, second = ("an" if name[0] in "aeiou" else "a" for name in (colour, background))
        prompt = f"{first} {colour} {shape} on {second} {background} background"
        prompts.append((prompt, shape, colour, background))
    return prompts


@torch.no_grad()
def sample(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """A picture of each prompt. The n-th begins from the noise of `seed + n`, whatever its batch.

    The model's own scheduler is the one that the worker draws previews with, DPM-Solver++
    (arXiv:2211.01095).
    """
    config = pipeline.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    noises = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed + number))
        for number in range(len(prompts))
    ]
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        drawn = pipeline(
            list(prompts[start : start + _BATCH]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=torch.stack(noises[start : start + _BATCH]),
            output_type="np",
        ).images
        pictures += [
            Image.fromarray((values * 255).round().astype(numpy.uint8)) for values in drawn
        ]
    return pictures


def sheet(pictures: Sequence[Image.Image], columns: int = 12) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = (length + 2 for length in pictures[0].size)
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (min(columns, len(pictures)) * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole
