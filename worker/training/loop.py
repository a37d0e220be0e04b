"""The training loop: prepared things in, a trained adapter out. No file and no network here."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import StepEvent
from worker.training.cache import Dataset
from worker.training.objective import NoiseSchedule, sample_losses
from worker.training.plan import Plan
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
        weights: the adapter's parameters by name, fp32.
        losses: `[total_steps]` on the device, the mean loss of each step; NaN where none is yet.
        rates: `[total_steps]` on the CPU, the learning rate of each step; NaN where none is yet.
        step: optimizer steps done.
    """

    unet: UNet2DConditionModel
    weights: dict[str, torch.nn.Parameter]
    accelerator: Accelerator
    optimizer: Any
    scheduler: Any
    losses: torch.Tensor
    rates: torch.Tensor = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.rates = torch.full(self.losses.shape, torch.nan, dtype=torch.float64)


@dataclass(frozen=True)
class Lesson:
    """What it learns from."""

    dataset: Dataset
    schedule: NoiseSchedule
    prediction_type: str
    parameters: TrainingParameters
    plan: Plan
    seed: int


def train(
    trainee: Trainee,
    lesson: Lesson,
    *,
    report: Callable[[StepEvent], None],
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
    """
    total = lesson.plan.total_steps
    reported, reported_at = trainee.step, time.monotonic()
    saved_at = reported_at
    step_seconds: deque[float] = deque(maxlen=_REMEMBERED)
    trainee.unet.train()
    while trainee.step < total:
        if reason := should_stop():
            check_finite(trainee, reported)
            return reason
        trainee.rates[trainee.step] = float(trainee.scheduler.get_last_lr()[0])
        trainee.losses[trainee.step] = optimizer_step(trainee, lesson)
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
    samples = sum(len(batch) for batch in batches)
    loss = torch.zeros((), device=trainee.losses.device)
    for number, batch in enumerate(batches):
        # Dropout draws from torch's global generator: its masks, too, come from the counters.
        torch.manual_seed(derived_seed(lesson.seed, "dropout", trainee.step, number))
        part = batch_losses(trainee, lesson, batch).sum() / samples
        trainee.accelerator.backward(part)
        loss += part.detach()
    if lesson.parameters.max_grad_norm > 0:
        trainee.accelerator.clip_grad_norm_(
            list(trainee.weights.values()), lesson.parameters.max_grad_norm
        )
    trainee.optimizer.step()
    if not trainee.accelerator.optimizer_step_was_skipped:
        trainee.scheduler.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return loss


def batch_losses(trainee: Trainee, lesson: Lesson, batch: list[Sample]) -> torch.Tensor:
    """The loss of each sample of a micro-batch, `[B]`."""
    rules, data, device = lesson.parameters, lesson.dataset, trainee.losses.device
    draws = [
        draw(
            sample,
            seed=lesson.seed,
            latent_shape=data.latent_shape,
            timesteps=len(lesson.schedule),
            flip=rules.random_flip,
            caption_dropout_rate=rules.caption_dropout_rate,
        )
        for sample in batch
    ]
    pictures = [sample.picture for sample in batch]
    latents = data.latents(pictures, draws)
    noise = torch.stack([one.noise for one in draws]).to(device)
    if rules.noise_offset:
        offset = torch.stack([one.offset for one in draws]).to(device)
        noise = noise + rules.noise_offset * offset
    timesteps = torch.tensor([one.timestep for one in draws], device=device)
    noisy = lesson.schedule.add_noise(latents, noise, timesteps)
    prediction = predict(trainee, noisy, timesteps, data.prompts(pictures, draws))
    target = lesson.schedule.target(lesson.prediction_type, latents, noise, timesteps)
    weights = lesson.schedule.weights(lesson.prediction_type, timesteps, rules.snr_gamma)
    return sample_losses(prediction, target, weights)


def predict(
    trainee: Trainee, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """What the UNet says of `[B, 4, h, w]` at `[B]` under `[B, 77, D]`, in the job's precision."""
    dtype = trainee.unet.dtype
    with trainee.accelerator.autocast():
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
        learning_rate=float(trainee.scheduler.get_last_lr()[0]),
        step_seconds=step_seconds,
        estimated_seconds=step_seconds * (plan.total_steps - trainee.step),
    )
