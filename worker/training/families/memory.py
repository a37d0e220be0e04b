"""How much GPU memory does training a UNet take, beside its weights?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: How a forward pass is made: as it is, with dropout in the adapter, or activations recomputed.
PassKind = Literal["plain", "dropout", "checkpointing"]

_GIB = 2**30


@dataclass(frozen=True)
class UnetMemory:
    """GPU memory of a family, GiB, for a base in half precision and an adapter of rank 16.

    What is kept between the passes is counted by `python -m benchmarks.counted` on the family's
    published sizes. Workspace and the backward pass's own needs are estimates.

    Attributes:
        fixed: workspace, and the adapter with gradient and moments.
        saved: what one sample keeps between forward and backward pass at any size.
        saved_at_512: the same for each 512 × 512 pixels, by kind of pass.
        backward_at_512: what the backward pass of one sample needs on top, likewise.
    """

    fixed: float
    saved: float
    saved_at_512: Mapping[PassKind, float]
    backward_at_512: float

    def saved_bytes(self, pixels: int, kind: PassKind, *, full_precision: bool) -> int:
        """What one sample of so many pixels keeps between forward and backward pass, bytes."""
        saved = self.saved + self.saved_at_512[kind] * _share(pixels)
        return int(saved * _GIB) * (2 if full_precision else 1)

    def training_bytes(
        self, pixels: int, samples: int, kind: PassKind, *, full_precision: bool
    ) -> int:
        """What training needs beside the weights, bytes; twice as much a sample in fp32."""
        backward = int(self.backward_at_512 * _share(pixels) * _GIB) * (2 if full_precision else 1)
        per_sample = self.saved_bytes(pixels, kind, full_precision=full_precision) + backward
        return int(self.fixed * _GIB) + samples * per_sample


def _share(pixels: int) -> float:
    """Of 512 × 512 pixels."""
    return pixels / 512**2
