"""Which picture, which noise, which timestep? Counters in, random numbers out: nothing to save.

Every random number is drawn from a generator seeded by (seed, purpose, counters), so a resume at
step k needs no generator state, and a picture's noise does not depend on its neighbours.
"""

import hashlib
from dataclasses import dataclass

import torch

from worker.training.plan import Plan


@dataclass(frozen=True)
class Sample:
    """One picture in one optimizer step.

    Attributes:
        step: optimizer step, from 0. position: place in the step, from 0.
        picture: index into the pictures that are trained on.
    """

    step: int
    position: int
    picture: int


@dataclass(frozen=True)
class Draw:
    """The random numbers of one sample.

    Attributes:
        timestep: 0 … T - 1. flipped, caption_dropped: decisions.
        latent, noise: standard normal, `[4, H/8, W/8]`.
        offset: standard normal, `[4, 1, 1]`.
    """

    timestep: int
    flipped: bool
    caption_dropped: bool
    latent: torch.Tensor
    noise: torch.Tensor
    offset: torch.Tensor


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose at one place."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose at one place."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *counters))


def epoch_order(seed: int, epoch: int, pictures: int) -> list[int]:
    """The order of the pictures in one pass, a permutation."""
    order = torch.randperm(pictures, generator=generator(seed, "order", epoch))
    return [int(index) for index in order]


def step_samples(plan: Plan, seed: int, step: int) -> list[list[Sample]]:
    """The micro-batches of one optimizer step. The last step of a pass may be shorter."""
    epoch, place = divmod(step, plan.steps_per_epoch)
    start = place * plan.group_size
    chosen = epoch_order(seed, epoch, plan.pictures)[start : start + plan.group_size]
    samples = [Sample(step, position, picture) for position, picture in enumerate(chosen)]
    size = plan.micro_batch
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def draw(
    sample: Sample,
    *,
    seed: int,
    latent_shape: torch.Size,
    timesteps: int,
    flip: bool,
    caption_dropout_rate: float,
) -> Draw:
    """The random numbers of one sample, always in the same order."""
    source = generator(seed, "sample", sample.step, sample.position)
    choices = torch.rand(2, generator=source, dtype=torch.float64)
    return Draw(
        timestep=int(torch.randint(timesteps, (1,), generator=source)),
        flipped=flip and bool(choices[0] < 0.5),
        caption_dropped=bool(choices[1] < caption_dropout_rate),
        latent=torch.randn(latent_shape, generator=source),
        noise=torch.randn(latent_shape, generator=source),
        offset=torch.randn((latent_shape[0], 1, 1), generator=source),
    )
