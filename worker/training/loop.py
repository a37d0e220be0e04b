"""The training loop: prepared things in, a trained adapter out. No file and no network here."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, Protocol

import torch

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import LogEvent, StepEvent
from worker.training.launch import prepare_launch, retreat
from worker.training.step import Lesson, Trainee, optimizer_step

StopReason = Literal["drain", "cancel", "time_limit"]

#: Time between two reports, seconds. The loss stays on the device in between.
REPORT_SECONDS = 1.0

#: Reports whose step times the estimate is made from.
_REMEMBERED = 20


class Interlude(Protocol):
    """Something between two steps that is no step, such as previews."""

    @property
    def due(self) -> bool:
        """Whether it is to be done before the next step; the same in all processes."""
        ...

    def draw(self, still_here: Callable[[], object]) -> None:
        """Do it, in all processes; the first calls `still_here` every few seconds at least."""
        ...

    def seconds_to_come(self, step_seconds: float) -> float:
        """What of it is still to be done until the end."""
        ...


def train(
    trainee: Trainee,
    lesson: Lesson,
    *,
    report: Callable[[StepEvent | LogEvent], None],
    should_stop: Callable[[], StopReason | None],
    checkpoint: Callable[[], object],
    after_step: Callable[[], object] | None = None,
    interlude: Interlude | None = None,
) -> StopReason | None:
    """Train to the end of the plan; returns why it stopped before, None if it did not.

    Args:
        trainee: changed in place, one whole optimizer step at a time.
        lesson: the data and the rules.
        report: told about once a second, and after the last step; of several processes, by the
            first alone.
        should_stop: looked at before each step.
        checkpoint: called every `checkpoint_seconds`.
        after_step: called after each step, before anything is said of it; what it changes must
            follow from the steps alone. It may end the training with a shorter plan.
        interlude: its time is in the estimate and in no step's.

    Raises:
        JobError: `NON_FINITE_LOSS`, with the step.
        torch.OutOfMemoryError: the smallest plan is still too large.
    """
    reported, reported_at = trainee.step, time.monotonic()
    saved_at = reported_at
    said, said_at = None, reported_at

    def still_here() -> None:
        nonlocal said_at
        if said is not None and time.monotonic() - said_at >= REPORT_SECONDS:
            said_at = time.monotonic()
            report(_progress(trainee, lesson, said.loss, said.step_seconds, interlude))

    step_seconds: deque[float] = deque(maxlen=_REMEMBERED)
    trainee.unet.train()
    if trainee.seat is None:
        prepare_launch(trainee, lesson, report)
    else:
        trainee.seat.prepare(trainee, lesson, report)
    while trainee.step < lesson.plan.total_steps:
        if reason := should_stop():
            check_finite(trainee, reported)
            return reason
        if interlude is not None and interlude.due:
            began = time.monotonic()
            with nullcontext() if trainee.seat is None else trainee.seat.apart():
                interlude.draw(still_here)
            reported_at += time.monotonic() - began
            continue
        too_large: torch.OutOfMemoryError | None = None
        try:
            trainee.losses[trainee.step] = optimizer_step(trainee, lesson)
        except torch.OutOfMemoryError as error:
            too_large = error.with_traceback(None)  # its frames hold the memory
        if too_large is not None:
            retreat(trainee, lesson, report, too_large)
            continue
        trainee.step += 1
        if after_step is not None:
            after_step()
        if not trainee.ranks.is_first:
            continue  # what a clock decides is the first one's to say
        now, ended = time.monotonic(), trainee.step == lesson.plan.total_steps
        if now - reported_at >= REPORT_SECONDS or ended:
            loss = check_finite(trainee, reported)
            now = time.monotonic()  # reading the loss waited for the device
            step_seconds.append((now - reported_at) / (trainee.step - reported))
            said = _progress(trainee, lesson, loss, statistics.median(step_seconds), interlude)
            report(said)
            said_at = now
            reported, reported_at = trainee.step, now
        if now - saved_at >= lesson.parameters.checkpoint_seconds and not ended:
            checkpoint()
            saved_at = time.monotonic()
    return None


def check_finite(trainee: Trainee, first: int) -> float:
    """The mean loss of the steps since `first`. Raises `JobError` if one is not a number."""
    recent = trainee.losses[first : trainee.step].cpu()
    if not recent.isfinite().all():
        step = first + int((~recent.isfinite()).nonzero()[0]) + 1
        raise JobError(
            ErrorCode.NON_FINITE_LOSS,
            f"The loss was not a finite number at step {step}; send a lower "
            "parameters.learning_rate, or mixed_precision bf16 or no.",
        )
    return float(recent.mean()) if len(recent) else 0.0


def _progress(
    trainee: Trainee, lesson: Lesson, loss: float, step_seconds: float, interlude: Interlude | None
) -> StepEvent:
    plan = lesson.plan
    to_come = 0.0 if interlude is None else interlude.seconds_to_come(step_seconds)
    return StepEvent(
        step=trainee.step,
        total_steps=plan.total_steps,
        epoch=plan.epoch_of(trainee.step),
        total_epochs=plan.total_epochs,
        loss=loss,
        learning_rate=float(trainee.schedule.apply()),
        step_seconds=step_seconds,
        estimated_seconds=step_seconds * (plan.total_steps - trainee.step) + to_come,
    )
