"""An adapter's weights: all in one flat buffer, which alone is trained, whoever multiplies them.

So gradient, clipping and optimizer are a few kernels instead of some for each of 256 tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

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

    #: The larger buffer that this one became a piece of, and its place there.
    within: tuple[torch.nn.Parameter, slice] | None = None

    @property
    def flat(self) -> torch.Tensor:
        """The weights `[P]`, through which their gradient reaches what is trained."""
        if self.within is None:
            return self.buffer
        whole, place = self.within
        return whole[place]

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


class JoinedWeights(AdapterWeights):
    """The adapters of several models in one buffer, so that one optimizer moves all of them.

    Attributes:
        places: where in the buffer each adapter lies, by the prefix of its weights' names.
    """

    places: dict[str, slice]

    def __init__(self, parts: Mapping[str, AdapterWeights]) -> None:
        """Take the adapters by the prefix that their weights' names get."""
        self._parts = list(parts.values())
        self.weights, self.places, start = {}, {}, 0
        self.buffer = torch.nn.Parameter(torch.cat([part.buffer.detach() for part in self._parts]))
        for prefix, part in parts.items():
            self.places[prefix] = place = slice(start, start + part.buffer.numel())
            for name, view in part.views(self.buffer.detach()[place]).items():
                self.weights[prefix + name] = weight = part.weights[name]
                weight.data = view
            part.buffer.requires_grad = False
            part.buffer.data = self.buffer.detach()[place]
            part.within = self.buffer, place
            start = place.stop

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, every model is exactly its base."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.silent())
            yield

    def let_go(self) -> None:
        """Free the graph of the last forward passes."""
        for part in self._parts:
            part.let_go()

    def remove(self) -> None:
        """Let every model compute as before."""
        for part in self._parts:
            part.remove()


def gather(weights: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> torch.nn.Parameter:
    """One buffer of all `weights` one after another, in `dtype`; they become views of it."""
    buffer = torch.cat([weight.detach().flatten().to(dtype) for weight in weights])
    start = 0
    for weight in weights:
        weight.requires_grad = False
        weight.data = buffer[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    return torch.nn.Parameter(buffer)
