"""One optimizer step: its micro-batches drawn, passed forward and backward, and the optimizer's."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from worker.contract.parameters import TrainingParameters
from worker.training.adapter_weights import AdapterWeights
from worker.training.batch import Batch, make_batch
from worker.training.cache import Dataset
from worker.training.conditioning import Conditions
from worker.training.families.family import Schedule as NoiseLaw
from worker.training.objective import sample_losses
from worker.training.optimizer import Schedule
from worker.training.plan import Plan
from worker.training.prior import Prior
from worker.training.ranks import ALONE, Ranks
from worker.training.recording import RecordedPass
from worker.training.sampler import Companions, Sample, derived_seed, draw, step_samples
from worker.training.validation import Validation


@dataclass
class Trainee:
    """What is trained, and with what.

    Attributes:
        losses: `[total_steps]` on the device, the mean loss of each step; NaN where none is yet.
        rates: `[total_steps]` on the device, the learning rate of each step; NaN where none is yet.
        step: optimizer steps done, skipped ones included.
        validation: what was seen of it on fixed pictures.
        text_encoder: where it is trained too; then captions are encoded at each step.
        along: previews drawn along the way, as PNG files: by step, then by place among the pairs of
            prompts and seeds.
        recorded: replays forward and backward pass, where the plan wants it and it can be had.
        ranks: who else trains the same adapter.
    """

    unet: UNet2DConditionModel
    adapter: AdapterWeights
    accelerator: Accelerator
    optimizer: Any
    schedule: Schedule
    losses: torch.Tensor
    rates: torch.Tensor = field(init=False)
    step: int = 0
    validation: Validation = field(default_factory=Validation)
    text_encoder: Any = None
    along: dict[int, dict[int, bytes]] = field(default_factory=dict)
    recorded: RecordedPass | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.rates = torch.full_like(self.losses, torch.nan, dtype=torch.float64)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights by name, fp32."""
        return self.adapter.weights

    @torch.no_grad()
    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the adapter other weights."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


@dataclass
class Lesson:
    """What it learns from. The plan is replaced by a smaller one where memory does not suffice.

    Attributes:
        held_out: pictures that are not trained on. trained: the others, by bucket.
        prior: with prior preservation, the pictures of the class, which are not among those.
    """

    dataset: Dataset
    schedule: NoiseLaw
    prediction_type: str
    parameters: TrainingParameters
    plan: Plan
    seed: int
    compile_cache: Path | None = None
    held_out: tuple[int, ...] = ()
    prior: Prior | None = None
    trained: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        of_class = self.companions.pictures if self.companions else ()
        self.trained = self.dataset.by_bucket(without={*self.held_out, *of_class})

    @property
    def companions(self) -> Companions | None:
        """What goes beside each picture of a step, if anything does."""
        return self.prior.companions if self.prior else None

    @property
    def sent(self) -> tuple[str, ...]:
        """sha256 of the pictures that came with the job: what a checkpoint belongs to."""
        made = self.prior.made if self.prior else 0
        return self.dataset.sha256[: len(self.dataset.sha256) - made]


def optimizer_step(trainee: Trainee, lesson: Lesson) -> torch.Tensor:
    """One optimizer step; returns its mean loss, a scalar on the device.

    Each micro-batch weighs as much as it has samples, so a shorter last group counts right and
    4 × 1 equals 1 × 4.
    """
    batches = step_samples(
        lesson.plan, lesson.seed, trainee.step, lesson.trained, lesson.companions
    )
    # What is beside a picture counts with it: both losses are means over the pictures.
    samples = sum(len(batch) for batch in batches) // lesson.plan.samples_each
    device = trainee.losses.device
    loss = torch.zeros((), device=device)
    with trainee.ranks.together():
        for number, batch in trainee.ranks.share(batches):
            # Dropout draws from torch's global generator: its masks, too, come from the counters.
            torch.manual_seed(derived_seed(lesson.seed, "dropout", trainee.step, number))
            numbers = drawn(lesson, batch).to(device)
            share = torch.full((), 1 / samples, device=device)
            if trainee.recorded is not None and trainee.recorded.fits(numbers):
                loss += trainee.recorded(numbers, share)
            else:
                loss += run_pass(trainee, lesson, numbers, share)
    loss = trainee.ranks.add_up(trainee.adapter.buffer, loss)
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


def drawn(lesson: Lesson, samples: list[Sample]) -> Batch:
    """The numbers of a micro-batch, on the CPU."""
    rules, data = lesson.parameters, lesson.dataset
    draws = [
        draw(
            sample,
            seed=lesson.seed,
            latent_shape=data.bucket_of(sample.picture).latent_shape,
            timesteps=lesson.schedule.choose,
            flip=rules.random_flip,
            caption_dropout_rate=rules.caption_dropout_rate,
            crops=data.crops,
            orders=len(data.orders[sample.picture]),
        )
        for sample in samples
    ]
    return make_batch(data, samples, draws)


def batch_losses(trainee: Trainee, lesson: Lesson, batch: Batch) -> torch.Tensor:
    """The loss of each sample of a micro-batch, `[B]`."""
    rules, data = lesson.parameters, lesson.dataset
    latents, noise, timesteps = (
        batch.latents(data),
        batch.noise(rules.noise_offset),
        batch.timesteps,
    )
    noisy = lesson.schedule.add_noise(latents, noise, timesteps)
    conditions = batch.conditions(data, trainee.text_encoder)
    prediction = predict(trainee, noisy, lesson.schedule.told(timesteps), conditions)
    target = lesson.schedule.target(lesson.prediction_type, latents, noise, timesteps)
    weights = lesson.schedule.weights(lesson.prediction_type, timesteps, rules.snr_gamma)
    losses = sample_losses(prediction, target, weights)
    if lesson.prior is None:
        return losses
    return losses * lesson.prior.weights[batch.bucket][batch.indices[0]]


def predict(
    trainee: Trainee, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """What the denoiser says of `[B, C, h, w]` when told `[B]`, in the job's precision.

    Only a base in full precision is autocast: one in half precision has no weight to be cast, and
    autocast would compute its norms and their inputs in fp32.
    """
    dtype = trainee.unet.dtype
    full = dtype not in (torch.float16, torch.bfloat16)
    with trainee.accelerator.autocast() if full else nullcontext():
        answer: torch.Tensor = trainee.unet(
            noisy.to(dtype), timestep=timesteps, **conditions.arguments(dtype), return_dict=False
        )[0]
    return answer
