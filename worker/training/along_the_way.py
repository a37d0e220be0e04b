"""What did it look like on the way? Previews between two steps, which leave no trace in them.

They are kept in the trainee, and so in its checkpoints: a job that was interrupted shows the same
pictures as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import torch

from worker.contract.parameters import TrainingParameters
from worker.training.drawing import STEPS, Brush, DrawingStopped, ShouldStop, at_rest, draw
from worker.training.plan import Plan
from worker.training.previews import Wanted
from worker.training.step import Lesson, Trainee
from worker.training.validation import PASS_COST

#: How often a job that does not say looks, and the largest share of its training that this may
#: take.
_POINTS = 3
_SHARE = 0.05

#: What a picture costs, in steps of one picture: each step of the sampler passes it forward twice,
#: with the prompt and with the empty one; in the end it is decoded, in full precision.
_DECODING_COST = 4.0
PICTURE_COST = 2 * STEPS * PASS_COST + _DECODING_COST


def points_along(
    rules: TrainingParameters, plan: Plan, wanted: Wanted, *, cheap: bool
) -> tuple[int, ...]:
    """After which optimizer steps there are previews, evenly spaced, the last step not among them.

    As many as the job says; else a few, where they are `cheap` beside the training.
    """
    count = rules.preview_points
    if count is None:
        each = PICTURE_COST * len(wanted.along)
        affordable = plan.total_steps * plan.group_size * _SHARE / each if each else 0
        count = min(_POINTS, int(affordable)) if cheap else 0
    if not wanted.along:
        return ()
    steps = {round(plan.total_steps * k / (count + 1)) for k in range(1, count + 1)}
    return tuple(sorted(steps - {0, plan.total_steps}))


@dataclass(frozen=True)
class _Ended:
    """Word of the first process that it draws no more; `again` if it was stopped before the end."""

    again: bool


class AlongTheWay:
    """Draws a job's previews when its training has come to certain steps.

    Attributes:
        seconds: what it took until now.
        left_out: why pictures are missing, in a sentence; none if none are.
    """

    def __init__(
        self,
        trainee: Trainee,
        lesson: Lesson,
        brush: Brush,
        wanted: Wanted,
        *,
        points: tuple[int, ...],
        should_stop: ShouldStop,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            trainee: where the pictures are kept; those of a resumed job are not drawn again.
            lesson: whose plan may end earlier than it was made.
            brush: draws with the trainee's adapter.
            wanted: the prompts and seeds.
            points: see `points_along`.
            should_stop: looked at before each step of the sampler; the same in all processes.
        """
        self._trainee, self._lesson, self._brush, self._wanted = trainee, lesson, brush, wanted
        self._points, self._should_stop = points, should_stop
        self._done = set(trainee.along)
        self._drawn = 0
        self.seconds = 0.0
        self.left_out: str | None = None

    @property
    def due(self) -> bool:
        """Whether the training has just come to one of the points."""
        step = self._trainee.step
        return step in self._points and step not in self._done

    def draw(self, still_here: Callable[[], object]) -> None:
        """Draw what is due; calls `still_here` before each step of the sampler.

        Of several processes the first one draws and the others wait. Where it was told to stop, it
        keeps nothing and stays due: whoever goes on with the training draws anew.
        """
        ranks = self._trainee.ranks
        if ranks.is_first:
            ended = _Ended(again=True)
            try:
                ended = self._draw(still_here)
            finally:
                ranks.from_first(ended)
        else:
            word: object = None
            while not isinstance(word, _Ended):
                word = ranks.from_first(None)  # the others are whether to stop, asked while drawing
            ended = word
        if not ended.again:
            self._done.add(self._trainee.step)

    def seconds_to_come(self, step_seconds: float) -> float:
        """What the points that are left will take, where a step takes so long."""
        ahead = [p for p in self._points if self._trainee.step <= p < self._lesson.plan.total_steps]
        left = len([point for point in ahead if point not in self._done])
        if self._drawn:
            each = self.seconds / self._drawn
        else:
            each = PICTURE_COST * step_seconds / self._lesson.plan.group_size
        return left * len(self._wanted.along) * each

    def _draw(self, still_here: Callable[[], object]) -> _Ended:
        def stop() -> object:
            still_here()
            return self._should_stop()

        began, pictures = time.monotonic(), {}
        try:
            with at_rest(self._brush.model):
                for place, prompt, seed in self._wanted.along:
                    out = BytesIO()
                    draw(self._brush, prompt, seed, stop).save(out, "PNG")
                    pictures[place] = out.getvalue()
        except DrawingStopped:
            return _Ended(again=True)
        except torch.OutOfMemoryError:
            self.left_out = "The GPU's memory did not suffice to draw all of them along the way."
        finally:
            self.seconds += time.monotonic() - began
            if torch.cuda.is_available():
                # What drawing took is the training's again, or its plan might get smaller.
                torch.cuda.empty_cache()
        self._trainee.along[self._trainee.step] = pictures
        self._drawn += len(pictures)
        return _Ended(again=False)
