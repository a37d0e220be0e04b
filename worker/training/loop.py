"""The training loop: prepared things in, a trained adapter out. No file and no network here."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import LogEvent, StepEvent
from worker.training.batch import Batch, make_batch
from worker.training.cache import Dataset
from worker.training.compiling import compile_blocks, forget_compiled_blocks
from worker.training.low_rank import LowRankArithmetic
from worker.training.objective import NoiseSchedule, sample_losses
from worker.training.optimizer import Schedule
from worker.training.plan import Plan
from worker.training.recording import RecordedPass
from worker.training.sampler import Sample, derived_seed, draw, step_samples

StopReason = Literal["drain", "cancel", "time_limit"]

#: Time between two reports, seconds. The loss stays on the device in between.
REPORT_SECONDS = 1.0

#: Reports whose step times the estimate is made from.
_REMEMBERED = 20


@dataclass
class Trainee:
    """What is trained, and with what.

    Attributes:
        losses: `[total_steps]` on the device, the mean loss of each step; NaN where none is yet.
        rates: `[total_steps]` on the device, the learning rate of each step; NaN where none is yet.
        step: optimizer steps done, skipped ones included.
        recorded: replays forward and backward pass, where the plan wants it and it can be had.
    """

    unet: UNet2DConditionModel
    adapter: LowRankArithmetic
    accelerator: Accelerator
    optimizer: Any
    schedule: Schedule
    losses: torch.Tensor
    rates: torch.Tensor = field(init=False)
    step: int = 0
    recorded: RecordedPass | None = None

    def __post_init__(self) -> None:
        self.rates = torch.full_like(self.losses, torch.nan, dtype=torch.float64)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights by name, fp32."""
        return self.adapter.weights


@dataclass
class Lesson:
    """What it learns from. The plan is replaced by a smaller one where memory does not suffice."""

    dataset: Dataset
    schedule: NoiseSchedule
    prediction_type: str
    parameters: TrainingParameters
    plan: Plan
    seed: int
    compile_cache: Path | None = None


def train(
    trainee: Trainee,
    lesson: Lesson,
    *,
    report: Callable[[StepEvent | LogEvent], None],
    should_stop: Callable[[], StopReason | None],
    checkpoint: Callable[[], object],
) -> StopReason | None:
    """Train to the end of the plan; returns why it stopped before, None if it did not.

    Args:
        trainee: changed in place, one whole optimizer step at a time.
        lesson: the data and the rules.
        report: told about once a second, and after the last step.
        should_stop: looked at before each step.
        checkpoint: called every `checkpoint_seconds`.

    Raises:
        JobError: `NON_FINITE_LOSS`, with the step.
        torch.OutOfMemoryError: the smallest plan is still too large.
    """
    total = lesson.plan.total_steps
    reported, reported_at = trainee.step, time.monotonic()
    saved_at = reported_at
    step_seconds: deque[float] = deque(maxlen=_REMEMBERED)
    trainee.unet.train()
    prepare_launch(trainee, lesson, report)
    while trainee.step < total:
        if reason := should_stop():
            check_finite(trainee, reported)
            return reason
        too_large: torch.OutOfMemoryError | None = None
        try:
            trainee.losses[trainee.step] = optimizer_step(trainee, lesson)
        except torch.OutOfMemoryError as error:
            too_large = error.with_traceback(None)  # its frames hold the memory
        if too_large is not None:
            retreat(trainee, lesson, report, too_large)
            continue
        trainee.step += 1
        now = time.monotonic()
        if now - reported_at >= REPORT_SECONDS or trainee.step == total:
            loss = check_finite(trainee, reported)
            now = time.monotonic()  # reading the loss waited for the device
            step_seconds.append((now - reported_at) / (trainee.step - reported))
            report(_progress(trainee, lesson, loss, statistics.median(step_seconds)))
            reported, reported_at = trainee.step, now
        if now - saved_at >= lesson.parameters.checkpoint_seconds and trainee.step < total:
            checkpoint()
            saved_at = time.monotonic()
    return None


def optimizer_step(trainee: Trainee, lesson: Lesson) -> torch.Tensor:
    """One optimizer step; returns its mean loss, a scalar on the device.

    Each micro-batch weighs as much as it has samples, so a shorter last group counts right and
    4 × 1 equals 1 × 4.
    """
    batches = step_samples(lesson.plan, lesson.seed, trainee.step)
    samples, device = sum(len(batch) for batch in batches), trainee.losses.device
    loss = torch.zeros((), device=device)
    for number, batch in enumerate(batches):
        # Dropout draws from torch's global generator: its masks, too, come from the counters.
        torch.manual_seed(derived_seed(lesson.seed, "dropout", trainee.step, number))
        numbers = drawn(lesson, batch).to(device)
        share = torch.full((), 1 / samples, device=device)
        if trainee.recorded is not None and trainee.recorded.fits(numbers):
            loss += trainee.recorded(numbers, share)
        else:
            loss += run_pass(trainee, lesson, numbers, share)
    if lesson.parameters.max_grad_norm > 0:
        trainee.accelerator.clip_grad_norm_(
            [trainee.adapter.buffer], lesson.parameters.max_grad_norm
        )
    trainee.rates[trainee.step] = trainee.schedule.apply()
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return loss


def run_pass(trainee: Trainee, lesson: Lesson, batch: Batch, share: torch.Tensor) -> torch.Tensor:
    """Forward and backward pass of a micro-batch on the device, each sample of it with `share`.

    Returns its part of the loss; its part of the gradient is added to the buffer's.
    """
    part = batch_losses(trainee, lesson, batch).sum() * share
    trainee.accelerator.backward(part)
    return part.detach()


def prepare_launch(
    trainee: Trainee, lesson: Lesson, report: Callable[[StepEvent | LogEvent], None]
) -> None:
    """Compile or record as planned; where it cannot be done, one log line says so.

    What is tried here leaves no trace in the training: no step is made, and each pass of a step
    sets the random state itself.
    """
    plan, trainee.recorded = lesson.plan, None
    if not (plan.compiled or plan.recorded):
        return
    samples = [Sample(0, place, place) for place in range(plan.micro_batch)]
    batch = drawn(lesson, samples).to(trainee.losses.device)

    def run(batch: Batch, share: torch.Tensor) -> torch.Tensor:
        return run_pass(trainee, lesson, batch, share)

    too_large = None
    try:
        if plan.compiled:
            compile_blocks(trainee.unet, lesson.compile_cache)
            run(batch, torch.ones((), device=batch.indices.device))
        if plan.recorded:
            trainee.recorded = RecordedPass(run, batch, trainee.adapter.buffer)
    except torch.OutOfMemoryError as error:
        too_large = error.with_traceback(None)
    except Exception as error:
        # Compilers and drivers raise what they like; all of it means that steps stay eager.
        forget_compiled_blocks(trainee.unet)
        lesson.plan = replace(plan, compiled=False, recorded=False)
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        report(LogEvent(level="warning", event="steps_stay_eager", fields={"reason": reason}))
    trainee.adapter.buffer.grad = None
    if too_large is not None:
        retreat(trainee, lesson, report, too_large)


def retreat(
    trainee: Trainee,
    lesson: Lesson,
    report: Callable[[StepEvent | LogEvent], None],
    too_large: torch.OutOfMemoryError,
) -> None:
    """Go on with the next smaller plan; the step that did not fit is made anew.

    Raises:
        torch.OutOfMemoryError: `too_large`, where there is none.
    """
    smaller = lesson.plan.smaller()
    if smaller is None:
        raise too_large
    trainee.recorded = trainee.adapter.buffer.grad = None
    trainee.adapter.let_go()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    lesson.plan = smaller
    if smaller.gradient_checkpointing:
        trainee.unet.enable_gradient_checkpointing()
    report(LogEvent(level="warning", event="plan_made_smaller", fields=asdict(smaller)))
    prepare_launch(trainee, lesson, report)


def drawn(lesson: Lesson, samples: list[Sample]) -> Batch:
    """The numbers of a micro-batch, on the CPU."""
    rules = lesson.parameters
    draws = [
        draw(
            sample,
            seed=lesson.seed,
            latent_shape=lesson.dataset.latent_shape,
            timesteps=len(lesson.schedule),
            flip=rules.random_flip,
            caption_dropout_rate=rules.caption_dropout_rate,
        )
        for sample in samples
    ]
    return make_batch(lesson.dataset, samples, draws)


def batch_losses(trainee: Trainee, lesson: Lesson, batch: Batch) -> torch.Tensor:
    """The loss of each sample of a micro-batch, `[B]`."""
    rules, data = lesson.parameters, lesson.dataset
    latents, noise, timesteps = (
        batch.latents(data),
        batch.noise(rules.noise_offset),
        batch.timesteps,
    )
    noisy = lesson.schedule.add_noise(latents, noise, timesteps)
    prediction = predict(trainee, noisy, timesteps, batch.prompts(data))
    target = lesson.schedule.target(lesson.prediction_type, latents, noise, timesteps)
    weights = lesson.schedule.weights(lesson.prediction_type, timesteps, rules.snr_gamma)
    return sample_losses(prediction, target, weights)


def predict(
    trainee: Trainee, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """What the UNet says of `[B, 4, h, w]` at `[B]` under `[B, 77, D]`, in the job's precision.

    Only a base in full precision is autocast: one in half precision has no weight to be cast, and
    autocast would compute its norms and their inputs in fp32.
    """
    dtype = trainee.unet.dtype
    full = dtype not in (torch.float16, torch.bfloat16)
    with trainee.accelerator.autocast() if full else nullcontext():
        answer: torch.Tensor = trainee.unet(
            noisy.to(dtype), timesteps, prompts.to(dtype), return_dict=False
        )[0]
    return answer


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


def _progress(trainee: Trainee, lesson: Lesson, loss: float, step_seconds: float) -> StepEvent:
    plan = lesson.plan
    return StepEvent(
        step=trainee.step,
        total_steps=plan.total_steps,
        epoch=plan.epoch_of(trainee.step),
        total_epochs=plan.total_epochs,
        loss=loss,
        learning_rate=float(trainee.schedule.apply()),
        step_seconds=step_seconds,
        estimated_seconds=step_seconds * (plan.total_steps - trainee.step),
    )
