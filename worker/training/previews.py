"""What can be seen of an adapter? Prompts drawn with it and without it, from the same noise.

Both are drawn after the training, so that nothing stands before its first step: the base alone is
the same model with the adapter silent. What it looked like on the way: `along_the_way.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.contract.manifest import PREVIEWS, Preview, PreviewAt
from worker.contract.parameters import TrainingParameters
from worker.training.drawing import Brush, DrawingStopped, ShouldStop, at_rest, draw
from worker.training.step import Trainee

#: Prompts that are made from the captions where a job names none.
_PROMPTS = 3

#: Prompts that are also drawn along the way, at most.
_PROMPTS_ALONG = 4

#: A machine without a GPU draws unasked only what costs it seconds: small pictures from UNets of at
#: most so many weights.
_CHEAP_SIDE = 128
_CHEAP_WEIGHTS = 100_000_000


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
    def along(self) -> list[tuple[int, str, int]]:
        """What of it is also drawn along the way: the first seed of the first prompts.

        Each with its place in `pairs`.
        """
        first = [(place, *pair) for place, pair in enumerate(self.pairs)]
        return first[:: max(1, len(self.seeds))][:_PROMPTS_ALONG]

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
    if not (cheap or rules.preview_points):
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
    brush: Brush,
    wanted: Wanted,
    *,
    folder: Path,
    should_stop: ShouldStop,
    first_in_any_case: bool,
) -> Drawn:
    """Draw each prompt with the adapter and without it, as PNG files in `folder / "previews"`.

    What was drawn along the way is written beside them. Neither the training's state nor torch's
    random state is touched.

    Args:
        trainee: the trained one.
        brush: the parts of its model, which draw; nothing is loaded.
        wanted: the prompts and seeds.
        folder: where the job's files go.
        should_stop: looked at before each step of the sampler; what is left is then dropped.
        first_in_any_case: draw the first picture with the adapter even so, for what must not depend
            on when somebody wanted to stop.
    """
    previews: list[Preview] = []
    left_out, first = wanted.left_out, None
    (folder / PREVIEWS).mkdir(exist_ok=True)
    try:
        with at_rest(brush.model):
            for number, (prompt, seed) in enumerate(wanted.pairs):
                before, after = (f"{PREVIEWS}/{x}_{number:02d}.png" for x in ("before", "after"))
                stop = _never if first_in_any_case and number == 0 else should_stop
                draw(brush, prompt, seed, stop).save(folder / after)
                first = first or after
                with trainee.adapter.silent():
                    draw(brush, prompt, seed, should_stop).save(folder / before)
                preview = Preview(
                    prompt=prompt,
                    seed=seed,
                    before=before,
                    after=after,
                    along=_written(trainee, number, folder),
                )
                previews.append(preview)
    except DrawingStopped:
        left_out = "The worker was about to stop when the adapter was finished."
    except torch.OutOfMemoryError:
        left_out = "The GPU's memory did not suffice to draw them."
    return Drawn(tuple(previews), left_out, first)


def _written(trainee: Trainee, number: int, folder: Path) -> tuple[PreviewAt, ...]:
    """Write what was drawn of a pair along the way."""
    found = []
    for step, pictures in sorted(trainee.along.items()):
        if number in pictures:
            name = f"{PREVIEWS}/step_{step:06d}_{number:02d}.png"
            (folder / name).write_bytes(pictures[number])
            found.append(PreviewAt(step=step, file=name))
    return tuple(found)


def _never() -> None:
    return None
