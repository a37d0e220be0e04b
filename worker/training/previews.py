"""What can be seen of an adapter? Prompts drawn with it and without it, from the same noise.

Drawn after the training, so that nothing stands before its first step and no checkpoint knows of
it: the base alone is the same model with the adapter silent.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from worker.contract.manifest import PREVIEWS, Preview
from worker.contract.parameters import TrainingParameters
from worker.training.base_model import LoadedBaseModel
from worker.training.baton import breathe
from worker.training.step import Lesson, Trainee

#: Steps of the sampler, and how strongly it follows the prompt.
STEPS = 25
GUIDANCE = 7.5

#: Prompts that are made from the captions where a job names none.
_PROMPTS = 3

#: A machine without a GPU draws unasked only what costs it seconds: small pictures from UNets of at
#: most so many weights.
_CHEAP_SIDE = 128
_CHEAP_WEIGHTS = 100_000_000

ShouldStop = Callable[[], object]


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn: each prompt from each seed.

    Attributes:
        left_out: why nothing is, in a sentence; none if something is.
    """

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    left_out: str | None = None

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Prompts and seeds, in the order of the files."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and why not all of it.

    Attributes:
        first: the first picture with the adapter, which may be there when its pair is not.
    """

    previews: tuple[Preview, ...] = ()
    left_out: str | None = None
    first: str | None = None


def previews_wanted(
    rules: TrainingParameters, captions: Sequence[str], trigger_word: str | None, *, cheap: bool
) -> Wanted:
    """What a job wants drawn: what it names; else prompts from its captions where that is cheap."""
    if rules.validation_prompts is not None:
        named = tuple(dict.fromkeys(rules.validation_prompts))
        none = None if named else "The job asked for none: its validation_prompts are empty."
        return Wanted(named, tuple(range(rules.num_validation_images)), none)
    if not cheap:
        return Wanted(
            left_out="Without a GPU they would take minutes; a job that names validation_prompts "
            "gets them all the same."
        )
    return Wanted(prompts_from_captions(captions, trigger_word), (0,))


def is_cheap(device: str, resolution: int, unet_weights: int) -> bool:
    """Whether a few previews cost little beside a training, on a `cuda` or a `cpu` device."""
    return device != "cpu" or (resolution <= _CHEAP_SIDE and unet_weights <= _CHEAP_WEIGHTS)


def prompts_from_captions(captions: Iterable[str], trigger_word: str | None) -> tuple[str, ...]:
    """Three captions at most, the most frequent first, each with the trigger word.

    Without any caption it is the trigger word alone, or the empty prompt, as it was trained.
    """
    counted = Counter(caption for caption in captions if caption)
    prompts = [_with_trigger(caption, trigger_word) for caption, _ in counted.most_common()]
    return tuple(dict.fromkeys(prompts))[:_PROMPTS] or (trigger_word or "",)


def _with_trigger(caption: str, trigger_word: str | None) -> str:
    if not trigger_word or trigger_word.lower() in caption.lower():
        return caption
    return f"{trigger_word}, {caption}"


def draw_previews(
    trainee: Trainee,
    lesson: Lesson,
    model: LoadedBaseModel,
    wanted: Wanted,
    *,
    folder: Path,
    should_stop: ShouldStop,
    first_in_any_case: bool,
) -> Drawn:
    """Draw each prompt with the adapter and without it, as PNG files in `folder / "previews"`.

    Neither the training's state nor torch's random state is touched.

    Args:
        trainee: the trained one.
        lesson: its noise schedule, what is predicted, and the resolution.
        model: whose parts draw; nothing is loaded.
        wanted: the prompts and seeds.
        folder: where the job's files go.
        should_stop: looked at before each step of the sampler; what is left is then dropped.
        first_in_any_case: draw the first picture with the adapter even so, for what must not depend
            on when somebody wanted to stop.
    """
    previews: list[Preview] = []
    left_out, first = wanted.left_out, None
    (folder / PREVIEWS).mkdir(exist_ok=True)
    brush = _Brush(trainee, lesson, model)
    try:
        with _drawing(trainee.unet, *(encoder.model for encoder in model.text_encoders)):
            for number, (prompt, seed) in enumerate(wanted.pairs):
                before, after = (f"{PREVIEWS}/{x}_{number:02d}.png" for x in ("before", "after"))
                stop = _never if first_in_any_case and number == 0 else should_stop
                _draw(brush, prompt, seed, stop).save(folder / after)
                first = first or after
                with trainee.adapter.silent():
                    _draw(brush, prompt, seed, should_stop).save(folder / before)
                previews.append(Preview(prompt=prompt, seed=seed, before=before, after=after))
    except _Stopped:
        left_out = "The worker was about to stop when the adapter was finished."
    except torch.OutOfMemoryError:
        left_out = "The GPU's memory did not suffice to draw them."
    return Drawn(tuple(previews), left_out, first)


class _Stopped(Exception):  # noqa: N818 - what happened, in one word
    pass


def _never() -> None:
    return None


@dataclass(frozen=True)
class _Brush:
    trainee: Trainee
    lesson: Lesson
    model: LoadedBaseModel


@torch.no_grad()
def _draw(brush: _Brush, prompt: str, seed: int, should_stop: ShouldStop) -> Image.Image:
    """One picture. Raises `_Stopped`."""
    trainee, model = brush.trainee, brush.model
    pipeline = pipeline_for(model, brush.lesson)
    dtype, side = trainee.unet.dtype, brush.lesson.parameters.resolution

    def look(_pipeline: Any, _step: int, _timestep: Any, held: dict[str, Any]) -> dict[str, Any]:
        if should_stop():
            raise _Stopped
        breathe()
        return held

    look(pipeline, 0, 0, {})
    full = dtype not in (torch.float16, torch.bfloat16)
    with trainee.accelerator.autocast() if full else nullcontext():
        latents = pipeline(
            **_told(model, prompt, dtype),
            height=side,
            width=side,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            callback_on_step_end=look,
        ).images
    vae = model.vae
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0][0]
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values.astype(numpy.uint8))


def _told(model: LoadedBaseModel, prompt: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The pipeline's arguments for a prompt, led away from the empty one."""
    family, encoders = model.family, model.text_encoders
    prompts = (family.encode(encoders, text) for text in (prompt, ""))
    return {name: value.to(dtype) for name, value in family.painter_prompts(*prompts).items()}


def pipeline_for(model: LoadedBaseModel, lesson: Lesson) -> Any:
    """A pipeline of the loaded parts, without text encoders: prompts come encoded."""
    pipeline = model.family.painter(model.vae, model.unet, _sampler(lesson))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sampler(lesson: Lesson) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (arXiv:2211.01095) on the noise schedule of the training."""
    kept = lesson.schedule.signal.double().cpu() ** 2
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        steps_offset=1,
        prediction_type=lesson.prediction_type,
    )


@contextmanager
def _drawing(*parts: Any) -> Iterator[None]:
    """The trained parts in eval mode and uncompiled: compiled blocks know the training's shapes."""
    before = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.train(training)
