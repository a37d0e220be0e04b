"""Does it still get better? The validation curve: its best point, when to stop, what it says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from worker.contract.parameters import TrainingParameters
from worker.training.plan import Plan

#: Validations of a job that holds pictures out and does not say how often.
_LOOKS = 10

#: Largest share of the training that these may take, and what a forward pass costs, in steps of one
#: picture: what checkpointing computes a second time (`python -m benchmarks.counted`), rounded up.
_SHARE = 0.03
PASS_COST = 0.34

#: Points of the curve that are sent to the backend; the metrics file has all.
_TOLD = 50

#: A loss that differs by a smaller share is as good as equal.
_EQUAL = 0.01

#: Optimizer step and validation loss; step 0 is the base model.
Point = tuple[int, float]


@dataclass
class Validation:
    """What was seen of a training until now.

    Attributes:
        points: in the order of the steps, without the base model's.
        base: the loss of the base model, once it is known.
        best_weights: a copy of the adapter at the best point, where it is kept; else empty.
    """

    points: list[Point] = field(default_factory=list)
    base: float | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def curve(self) -> list[Point]:
        """All that is known, from the base model on."""
        return self.points if self.base is None else [(0, self.base), *self.points]

    @property
    def best(self) -> Point | None:
        """The first of the points with the lowest loss that is a number."""
        numbers = [point for point in self.points if not math.isnan(point[1])]
        return min(numbers, key=lambda point: point[1], default=None)

    def add(self, step: int, loss: float, weights: Mapping[str, torch.Tensor] | None) -> None:
        """A look at the adapter after `step` steps; with `weights` the best ones are kept."""
        self.points.append((step, loss))
        if weights is not None and self.best == (step, loss):
            self.best_weights = {name: one.detach().clone() for name, one in weights.items()}

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many looks in succession have not found a lower loss."""
        if patience is None or self.best is None:
            return False
        return len(self.points) - 1 - self.points.index(self.best) >= patience


def steps_between(rules: TrainingParameters, plan: Plan, passes: int) -> int | None:
    """Optimizer steps between two looks of `passes` forward passes; None: at the end alone."""
    if rules.validation_steps is not None:
        return rules.validation_steps
    if not rules.validation_split:
        return None
    cheap = math.ceil(passes * PASS_COST / (plan.group_size * _SHARE))
    return max(math.ceil(plan.total_steps / _LOOKS), cheap)


def thinned(curve: Sequence[Point]) -> list[dict[str, float]]:
    """A curve for a message: some 50 of its points at most, the first, best and last among them."""
    every = math.ceil(len(curve) / _TOLD)
    told = {*curve[::every], min(curve, key=lambda point: point[1]), curve[-1]}
    return [{"step": step, "validation_loss": loss} for step, loss in sorted(told)]


def in_words(points: Sequence[Point], *, held_out: int, looked_at: int) -> str:
    """What the curve says of over-fitting, as one sentence for a person.

    Args:
        points: the base model's, of step 0, then the adapter's.
        held_out: how many pictures are held out; with 0 it was measured on some of the others.
        looked_at: on how many it was measured.
    """
    (_, base), *others = points
    best, last = min(others, key=lambda point: point[1]), others[-1]
    if not held_out:
        return (
            f"The loss on pictures that are trained on {_change(base, last[1])}, which says how "
            "much was learned and nothing of over-fitting; hold pictures out with "
            "validation_split for that."
        )
    on = "the held-out picture" if held_out == 1 else f"the {held_out} held-out pictures"
    if looked_at < held_out:
        on = f"{looked_at} of {on}"
    if best[1] > base * (1 - _EQUAL):
        return (
            f"The training did not help with {on}: the loss on what is not trained on "
            f"{_change(base, best[1])} at best; other or more pictures or captions may."
        )
    if last[1] > best[1] * (1 + _EQUAL):
        return (
            f"Over-fitted after step {best[0]}: the loss on {on} {_change(base, best[1])} until "
            f"there and {_change(best[1], last[1])} until step {last[0]}; "
            f"the adapter of step {best[0]} is the result."
        )
    lowest = "" if best == last else f", lowest at step {best[0]}, whose adapter is the result"
    return f"No sign of over-fitting: the loss on {on} {_change(base, last[1])}{lowest}."


def _change(before: float, after: float) -> str:
    share = after / before - 1
    if abs(share) < _EQUAL:
        return f"stayed at {after:.4g}"
    verb = "fell" if share < 0 else "rose"
    return f"{verb} from {before:.4g} to {after:.4g} ({share:+.0%})"
