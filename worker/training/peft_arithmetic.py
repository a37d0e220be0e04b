"""Adapters that PEFT itself computes, on views of the one buffer: DoRA, and models but the UNet.

DoRA (arXiv:2402.09353) turns `W` to `m · (W + B A · alpha / rank) / ‖W + B A · alpha / rank‖`, row
by row; the norms need each whole matrix, so nothing is gained by grouping what has one input. PEFT
computes it in the weights' dtype, fp32: a magnitude in half precision could not move by little.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer

from worker.training.adapter_weights import ADAPTER, AdapterWeights, gather


class PeftArithmetic(AdapterWeights):
    """PEFT's forward passes on one model, whose adapter's weights are pieces of the buffer.

    They are made anew for each forward pass, as part of the graph from the buffer to the loss.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Take a model that PEFT has just put the adapter on; its weights move into the buffer."""
        self.weights = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self._owners = [model.get_submodule(name.rpartition(".")[0]) for name in self.weights]
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        base: torch.Tensor = self._layers[0].base_layer.weight
        for layer in self._layers:
            _set_exact_magnitude(layer)
        dtype = torch.promote_types(torch.float32, base.dtype)
        self.buffer = gather(list(self.weights.values()), dtype)
        self._sizes = [weight.numel() for weight in self.weights.values()]
        self._hook = model.register_forward_pre_hook(lambda _module, _inputs: self._spread())

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, each layer is its base layer."""
        for layer in self._layers:
            layer.forward = layer.base_layer.forward
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def let_go(self) -> None:
        """Free the graph of the last forward pass: the weights are parameters again."""
        for owner, weight in zip(self._owners, self.weights.values(), strict=True):
            owner._parameters["weight"] = weight

    def remove(self) -> None:
        """Leave PEFT's layers with parameters of their own."""
        self._hook.remove()
        self.let_go()

    def _spread(self) -> None:
        pieces = torch.split(self.flat, self._sizes)
        for owner, piece, weight in zip(self._owners, pieces, self.weights.values(), strict=True):
            # Not a parameter of its own: its gradient is the buffer's.
            owner._parameters["weight"] = piece.view(weight.shape)  # type: ignore[assignment]


def _set_exact_magnitude(layer: LoraLayer) -> None:
    """The norms of the base's rows in full precision: PEFT rounds them to the base's dtype.

    As `B` is 0, the layer then is exactly its base.
    """
    if ADAPTER in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        weight = layer.base_layer.weight.to(torch.promote_types(torch.float32, magnitude.dtype))
        magnitude.data = torch.linalg.norm(weight.flatten(1), dim=1).view(magnitude.shape)
