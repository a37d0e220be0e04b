"""One optimizer step: its micro-batches drawn, passed forward and backward, and the optimizer's."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from worker.training.repeatable import Strictness, passed
from worker.training.sampler import Companions, Sample, derived_seed, draw, step_samples
from worker.training.validation import Validation

if TYPE_CHECKING:
    from worker.training.seat import Seat


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
        seat: where its passes are made; each by itself if None.
        strictness: whether its gradients repeat bit for bit.
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
    seat: "Seat | None" = None
    strictness: Strictness = field(default_factory=Strictness)

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


@dataclass(frozen=True)
class Work:
    """A micro-batch on the device, to go forward and backward.

    Attributes:
        share: what each sample weighs in its step, a scalar on the device.
        dropout_seed: the random state that the pass begins with.
    """

    trainee: Trainee
    lesson: Lesson
    batch: Batch
    share: torch.Tensor
    dropout_seed: int


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
    take_part = pass_alone if trainee.seat is None else trainee.seat.take_part
    with trainee.ranks.together():
        for number, batch in trainee.ranks.share(batches):
            loss += take_part(
                Work(
                    trainee,
                    lesson,
                    drawn(lesson, batch).to(device),
                    torch.full((), 1 / samples, device=device),
                    derived_seed(lesson.seed, "dropout", trainee.step, number),
                )
            )
    loss = trainee.ranks.add_up(trainee.adapter.buffer, loss)
    if lesson.parameters.max_grad_norm > 0:
        trainee.accelerator.clip_grad_norm_(
            [trainee.adapter.buffer], lesson.parameters.max_grad_norm
        )
    trainee.rates[trainee.step] = trainee.schedule.apply()
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return loss


def pass_alone(work: Work) -> torch.Tensor:
    """Pass a micro-batch by itself, recorded where that can be had; as `run_pass`."""
    trainee = work.trainee

    def make() -> torch.Tensor:
        # Dropout draws from torch's global generator: its masks, too, come from the counters.
        torch.manual_seed(work.dropout_seed)
        if trainee.recorded is not None and trainee.recorded.fits(work.batch):
            return trainee.recorded(work.batch, work.share)
        return run_pass(trainee, work.lesson, work.batch, work.share)

    return passed(make, trainee.strictness)


def run_pass(trainee: Trainee, lesson: Lesson, batch: Batch, share: torch.Tensor) -> torch.Tensor:
    """Forward and backward pass of a micro-batch on the device, each sample of it with `share`.

    For use in `passed`. Returns its part of the loss; its part of the gradient is added to the
    buffer's.
    """
    part = batch_losses(trainee, lesson, batch).sum() * share
    with trainee.strictness.backward():
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


@dataclass(frozen=True)
class Task:
    """What the denoiser is asked of B samples, and what it should say.

    Attributes:
        noisy, target: `[B, C, h, w]`. told: of the time, `[B]`.
        weights: of the losses by their time, `[B]`, if any.
        counts: what each sample counts beside the others, `[B]`, if not the same.
    """

    noisy: torch.Tensor
    told: torch.Tensor
    conditions: Conditions
    target: torch.Tensor
    weights: torch.Tensor | None
    counts: torch.Tensor | None

    def losses(self, prediction: torch.Tensor) -> torch.Tensor:
        """The loss of each sample, `[B]`, for what was said of them."""
        losses = sample_losses(prediction, self.target, self.weights)
        return losses if self.counts is None else losses * self.counts


def task_of(lesson: Lesson, batch: Batch, text_encoder: Any = None) -> Task:
    """The task of a micro-batch; `text_encoder` is one that is trained."""
    rules, data = lesson.parameters, lesson.dataset
    latents, noise, timesteps = (
        batch.latents(data),
        batch.noise(rules.noise_offset),
        batch.timesteps,
    )
    return Task(
        noisy=lesson.schedule.add_noise(latents, noise, timesteps),
        told=lesson.schedule.told(timesteps),
        conditions=batch.conditions(data, text_encoder),
        target=lesson.schedule.target(lesson.prediction_type, latents, noise, timesteps),
        weights=lesson.schedule.weights(lesson.prediction_type, timesteps, rules.snr_gamma),
        counts=lesson.prior.weights[batch.bucket][batch.indices[0]] if lesson.prior else None,
    )


def batch_losses(trainee: Trainee, lesson: Lesson, batch: Batch) -> torch.Tensor:
    """The loss of each sample of a micro-batch, `[B]`."""
    task = task_of(lesson, batch, trainee.text_encoder)
    return task.losses(predict(trainee, task.noisy, task.told, task.conditions))


def predict(
    trainee: Trainee, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """What the denoiser says of `[B, C, h, w]` when told `[B]`, in the job's precision."""
    return answer(trainee.unet, trainee.accelerator, noisy, timesteps, conditions)


def answer(
    unet: Any,
    accelerator: Accelerator,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
) -> torch.Tensor:
    """What the denoiser `unet` says in the accelerator's precision.

    Only a base in full precision is autocast: one in half precision has no weight to be cast, and
    autocast would compute its norms and their inputs in fp32.
    """
    dtype = unet.dtype
    full = dtype not in (torch.float16, torch.bfloat16)
    with accelerator.autocast() if full else nullcontext():
        said: torch.Tensor = unet(
            noisy.to(dtype), timestep=timesteps, **conditions.arguments(dtype), return_dict=False
        )[0]
    return said
