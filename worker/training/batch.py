"""What goes through the UNet at once: the numbers of one micro-batch, drawn here, used there.

They are drawn on the CPU, so that a job repeats on every device, and cross to the device as two
tensors out of pinned memory: nothing waits for the copy, and a recorded step finds them in one
place.
"""

from dataclasses import dataclass
from typing import Any

import torch

from worker.training.cache import Dataset
from worker.training.conditioning import Conditions
from worker.training.sampler import Draw, Sample


@dataclass(frozen=True)
class Batch:
    """The numbers of B samples.

    Attributes:
        indices: `[4, B]`, int64: row in the bucket, variant, embedding, timestep.
        normal: `[B, 2 * n + c]`, fp32: two fields of `shape` and one number a channel, flat.
        shape: a latent's, `[c, h, w]`, with n elements.
        bucket: the one that all of them are of.
    """

    indices: torch.Tensor
    normal: torch.Tensor
    shape: torch.Size
    bucket: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; nobody waits for it."""
        if device.type == "cpu":
            return self
        indices, normal = (
            tensor.pin_memory().to(device, non_blocking=True)
            for tensor in (self.indices, self.normal)
        )
        return Batch(indices, normal, self.shape, self.bucket)

    @property
    def timesteps(self) -> torch.Tensor:
        """`[B]`."""
        return self.indices[3]

    def latents(self, data: Dataset) -> torch.Tensor:
        """Latents `[B, c, h, w]`, sampled anew from the cached posterior."""
        return data.latents(self.bucket, self.indices[0], self.indices[1], self._field(0))

    def conditions(self, data: Dataset, text_encoder: Any = None) -> Conditions:
        """What the UNet is told beside the noisy latents; `text_encoder` is one that is trained."""
        rows, variants, captions, _ = self.indices
        return data.told(self.bucket, rows, variants, captions, text_encoder)

    def noise(self, offset_strength: float) -> torch.Tensor:
        """Noise `[B, c, h, w]`, with an offset a channel if there is to be one."""
        noise = self._field(1)
        if not offset_strength:
            return noise
        offset = self.normal[:, 2 * self.shape.numel() :]
        return noise + offset_strength * offset[:, :, None, None]

    def _field(self, number: int) -> torch.Tensor:
        size = self.shape.numel()
        return self.normal[:, number * size : (number + 1) * size].view(-1, *self.shape)


def make_batch(data: Dataset, samples: list[Sample], draws: list[Draw]) -> Batch:
    """Put the draws of the samples together, on the CPU; their pictures are of one bucket."""
    places = [
        (
            data.place_of(sample.picture)[1],
            data.variant(one.crop, flipped=one.flipped),
            data.embedding_of(sample.picture, order=one.order, dropped=one.caption_dropped),
            one.timestep,
        )
        for sample, one in zip(samples, draws, strict=True)
    ]
    normal = [
        torch.cat([one.latent.flatten(), one.noise.flatten(), one.offset.flatten()])
        for one in draws
    ]
    return Batch(
        torch.tensor(places).t().contiguous(),
        torch.stack(normal),
        draws[0].latent.shape,
        data.place_of(samples[0].picture)[0],
    )
