"""An adapter's weights: all in one flat buffer, which alone is trained, whoever multiplies them.

So gradient, clipping and optimizer are a few kernels instead of some for each of 256 tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

#: PEFT's name of the one adapter.
ADAPTER = "default"


class AdapterWeights(ABC):
    """The weights of the adapter that PEFT has just put on a model, from `__init__` to `remove`.

    Attributes:
        buffer: the one trained parameter `[P]`.
        weights: PEFT's parameters by name, in PEFT's order; views of `buffer`.
    """

    buffer: torch.nn.Parameter
    weights: dict[str, torch.nn.Parameter]

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """`flat` `[P]`, laid out as the buffer, in pieces with the weights' names and shapes."""
        return {
            name: flat[start : start + weight.numel()].view(weight.shape)
            for name, weight in self.weights.items()
            for start in (weight.storage_offset(),)
        }

    @abstractmethod
    def silent(self) -> AbstractContextManager[None]:
        """Inside, the model is exactly its base."""

    @abstractmethod
    def let_go(self) -> None:
        """Free the graph of the last forward pass."""

    @abstractmethod
    def remove(self) -> None:
        """Let the model compute as before; PEFT's layers are left to PEFT."""


def gather(weights: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> torch.nn.Parameter:
    """One buffer of all `weights` one after another, in `dtype`; they become views of it."""
    buffer = torch.cat([weight.detach().flatten().to(dtype) for weight in weights])
    start = 0
    for weight in weights:
        weight.requires_grad = False
        weight.data = buffer[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    return torch.nn.Parameter(buffer)
