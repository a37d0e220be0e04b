"""What goes through the UNet at once: the numbers of one micro-batch, drawn here, used there.

They are drawn on the CPU, so that a job repeats on every device, and cross to the device as two
tensors out of pinned memory: nothing waits for the copy, and a recorded step finds them in one
place.
"""

from dataclasses import dataclass

import torch

from worker.training.cache import Dataset
from worker.training.sampler import Draw, Sample


@dataclass(frozen=True)
class Batch:
    """The numbers of B samples.

    Attributes:
        indices: `[4, B]`, int64: picture, variant, embedding, timestep.
        normal: `[B, 2 * n + c]`, fp32: two fields of `shape` and one number a channel, flat.
        shape: a latent's, `[c, h, w]`, with n elements.
    """

    indices: torch.Tensor
    normal: torch.Tensor
    shape: torch.Size

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; nobody waits for it."""
        if device.type == "cpu":
            return self
        indices, normal = (
            tensor.pin_memory().to(device, non_blocking=True)
            for tensor in (self.indices, self.normal)
        )
        return Batch(indices, normal, self.shape)

    @property
    def timesteps(self) -> torch.Tensor:
        """`[B]`."""
        return self.indices[3]

    def latents(self, data: Dataset) -> torch.Tensor:
        """Latents `[B, c, h, w]`, sampled anew from the cached posterior."""
        return data.latents(self.indices[0], self.indices[1], self._field(0))

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
    """Put the draws of the samples together, on the CPU."""
    places = [
        (
            sample.picture,
            int(one.flipped),
            data.embedding_of(sample.picture, dropped=one.caption_dropped),
            one.timestep,
        )
        for sample, one in zip(samples, draws, strict=True)
    ]
    normal = [
        torch.cat([one.latent.flatten(), one.noise.flatten(), one.offset.flatten()])
        for one in draws
    ]
    return Batch(torch.tensor(places).t().contiguous(), torch.stack(normal), data.latent_shape)
