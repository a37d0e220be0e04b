"""How is a prompt drawn? By its family's pipeline of the loaded parts, from the noise of a seed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image

from worker.training.base_model import LoadedBaseModel
from worker.training.baton import breathe
from worker.training.compiling import as_written

#: Steps of the sampler, and how strongly it follows the prompt.
STEPS = 25
GUIDANCE = 7.5

ShouldStop = Callable[[], object]


class DrawingStopped(Exception):  # noqa: N818 - what happened, in two words
    """Somebody wanted to stop while a picture was drawn; there is none."""


@dataclass(frozen=True)
class Brush:
    """What draws.

    Attributes:
        model: its parts, the UNet with whatever adapter is on it.
        prediction_type: what the UNet says.
        side: of the picture, pixels.
        autocast: entered for a UNet in full precision.
    """

    model: LoadedBaseModel
    prediction_type: str
    side: int
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


@torch.no_grad()
def draw(brush: Brush, prompt: str, seed: int, should_stop: ShouldStop) -> Image.Image:
    """One picture. Torch's random state is not touched.

    Args:
        brush: what draws; its parts are in eval mode, see `at_rest`.
        prompt: led away from the empty one.
        seed: of the noise, as diffusers' own pipelines take it from a generator.
        should_stop: looked at before each step of the sampler.

    Raises:
        DrawingStopped: it said so.
    """
    pipeline, vae = pipeline_for(brush), brush.model.vae
    dtype = brush.model.unet.dtype

    def look(_pipeline: Any, _step: int, _timestep: Any, held: dict[str, Any]) -> dict[str, Any]:
        if should_stop():
            raise DrawingStopped
        breathe()
        return held

    look(pipeline, 0, 0, {})
    full = dtype not in (torch.float16, torch.bfloat16)
    with brush.autocast() if full else nullcontext():
        latents = pipeline(
            **_told(brush.model, prompt, dtype),
            height=brush.side,
            width=brush.side,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=look,
        ).images
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + shift
    pixels = vae.decode(latents, return_dict=False)[0][0]
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values.astype(numpy.uint8))


def pipeline_for(brush: Brush) -> Any:
    """A pipeline of the loaded parts, without text encoders: prompts come encoded."""
    model = brush.model
    sampler = model.family.sampler(model.schedule, brush.prediction_type)
    pipeline = model.family.painter(model.vae, model.unet, sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _told(model: LoadedBaseModel, prompt: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The pipeline's arguments for a prompt, led away from the empty one."""
    family, encoders = model.family, model.text_encoders
    prompts = (family.encode(encoders, text) for text in (prompt, ""))
    return {name: value.to(dtype) for name, value in family.painter_prompts(*prompts).items()}


@contextmanager
def at_rest(model: LoadedBaseModel) -> Iterator[None]:
    """What is trained in eval mode and uncompiled: compiled blocks know the training's shapes."""
    parts = [model.unet, *(encoder.model for encoder in model.text_encoders)]
    before = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        with as_written(model.unet):
            yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.train(training)
