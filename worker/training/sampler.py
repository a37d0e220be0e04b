"""Which picture, which noise, which timestep? Counters in, random numbers out: nothing to save.

Every random number is drawn from a generator seeded by (seed, purpose, counters), so a resume at
step k needs no generator state, and a picture's noise does not depend on its neighbours.
"""

import functools
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from worker.training.plan import Plan


@dataclass(frozen=True)
class Sample:
    """One picture in one optimizer step.

    Attributes:
        step: optimizer step, from 0. position: place in the step, from 0.
        picture: index into the job's usable pictures. epoch: the pass, from 0.
    """

    step: int
    position: int
    picture: int
    epoch: int = 0


@dataclass(frozen=True)
class Companions:
    """Pictures of which one goes beside each that is learned from; each in turn, in passes.

    Attributes:
        pictures: indices, as in `Sample`.
        bucket_of: the bucket of a picture, theirs or another.
    """

    pictures: Sequence[int]
    bucket_of: Callable[[int], int]

    def beside(self, sample: Sample, seed: int, *, shown: int, position: int) -> Sample:
        """The companion of `sample`, before which `shown` samples were; at `position`."""
        turns, place = divmod(shown, len(self.pictures))
        order = epoch_order(seed, turns, len(self.pictures), purpose="class order")
        return Sample(sample.step, position, self.pictures[order[place]], turns)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one sample.

    Attributes:
        timestep: 0 … T - 1. flipped, caption_dropped: decisions.
        latent, noise: standard normal, `[4, H/8, W/8]`.
        crop, order: which part of the picture, and which order of its caption's tags.
        offset: standard normal, `[4, 1, 1]`.
    """

    timestep: int
    flipped: bool
    caption_dropped: bool
    latent: torch.Tensor
    noise: torch.Tensor
    offset: torch.Tensor
    crop: int = 0
    order: int = 0


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose at one place."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose at one place."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *counters))


def epoch_order(seed: int, epoch: int, pictures: int, *, purpose: str = "order") -> list[int]:
    """The order of the pictures in one pass, a permutation."""
    order = torch.randperm(pictures, generator=generator(seed, purpose, epoch))
    return [int(index) for index in order]


def held_out(seed: int, pictures: int, count: int, *, doubled: Collection[int] = ()) -> list[int]:
    """The pictures that are not trained on, in ascending order.

    Args:
        seed: the job's.
        pictures: usable ones in all.
        count: how many to hold out.
        doubled: pictures of which there is another, the last to be chosen: what is trained on says
            nothing of over-fitting.
    """
    order = torch.randperm(pictures, generator=generator(seed, "held out")).tolist()
    return sorted(sorted(order, key=lambda picture: picture in doubled)[:count])


@functools.lru_cache(maxsize=2)
def epoch_batches(
    seed: int, epoch: int, batch_size: int, buckets: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The batches of one pass, each with its bucket; each picture is in one of them.

    They come in the order of their first pictures in the pass. The last batch of a bucket may be
    shorter.
    """
    place = [(number, picture) for number, bucket in enumerate(buckets) for picture in bucket]
    batches: list[tuple[int, list[int]]] = []
    growing: dict[int, list[int]] = {}
    for index in epoch_order(seed, epoch, len(place)):
        bucket, picture = place[index]
        batch = growing.get(bucket)
        if batch is None or len(batch) == batch_size:
            batch = growing[bucket] = []
            batches.append((bucket, batch))
        batch.append(picture)
    return tuple((bucket, tuple(pictures)) for bucket, pictures in batches)


def step_samples(
    plan: Plan,
    seed: int,
    step: int,
    buckets: tuple[tuple[int, ...], ...] | None = None,
    companions: Companions | None = None,
) -> list[list[Sample]]:
    """The micro-batches of one optimizer step. The last step of a pass may be shorter.

    Args:
        plan: how many pictures go through at once, and into one step.
        seed: the job's.
        step: from 0.
        buckets: the pictures that are trained on, by size; by default `plan.pictures` of one size.
        companions: of which one goes beside each, in the same pass where it is of the same size.
    """
    buckets = buckets or (tuple(range(plan.pictures)),)
    epoch, place = divmod(step, plan.steps_per_epoch)
    batches = epoch_batches(seed, epoch, plan.batch_size, buckets)
    number = plan.group_size // plan.batch_size
    by_bucket: dict[int, list[Sample]] = {}
    position, first = 0, place * number
    shown = epoch * plan.pictures + sum(len(batch) for _, batch in batches[:first])
    for bucket, batch in batches[first : first + number]:
        added = [Sample(step, position + i, picture, epoch) for i, picture in enumerate(batch)]
        position += len(batch)
        if companions is None:
            by_bucket.setdefault(bucket, []).extend(added)
            continue
        for sample in added:
            by_bucket.setdefault(companions.bucket_of(sample.picture), []).append(sample)
        for sample in added:
            place_beside = plan.group_size + sample.position
            other = companions.beside(
                sample, seed, shown=shown + sample.position, position=place_beside
            )
            by_bucket.setdefault(companions.bucket_of(other.picture), []).append(other)
    size = plan.micro_batch
    return [
        samples[i : i + size]
        for samples in by_bucket.values()
        for i in range(0, len(samples), size)
    ]


def turn(seed: int, purpose: str, sample: Sample, choices: int) -> int:
    """Which of so many variants a picture has in this pass: each once in as many passes."""
    if choices == 1:
        return 0
    cycle, place = divmod(sample.epoch, choices)
    order = torch.randperm(choices, generator=generator(seed, purpose, sample.picture, cycle))
    return int(order[place])


def draw(
    sample: Sample,
    *,
    seed: int,
    latent_shape: torch.Size,
    timesteps: int | Callable[[torch.Generator], int],
    flip: bool,
    caption_dropout_rate: float,
    crops: int = 1,
    orders: int = 1,
) -> Draw:
    """The random numbers of one sample, always in the same order.

    `timesteps` is how many there are, or chooses one; `crops` and `orders` are how many parts and
    orders of its caption a picture has.
    """
    source = generator(seed, "sample", sample.step, sample.position)
    choices = torch.rand(2, generator=source, dtype=torch.float64)
    if callable(timesteps):
        timestep = timesteps(source)
    else:
        timestep = int(torch.randint(timesteps, (1,), generator=source))
    return Draw(
        timestep=timestep,
        flipped=flip and bool(choices[0] < 0.5),
        caption_dropped=bool(choices[1] < caption_dropout_rate),
        latent=torch.randn(latent_shape, generator=source),
        noise=torch.randn(latent_shape, generator=source),
        offset=torch.randn((latent_shape[0], 1, 1), generator=source),
        crop=turn(seed, "crop", sample, crops),
        order=turn(seed, "caption order", sample, orders),
    )
