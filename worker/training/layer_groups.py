"""Which adapted layers are given one input? They are computed together, whoever multiplies.

PEFT says which layers have an adapter. Where layers have one input (q, k and v of self-attention, k
and v of cross-attention), they make a group; every other layer is one by itself.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from worker.training.adapter_weights import ADAPTER


class LayerGroup(ABC):
    """Adapted layers that are given the same input: linear ones, or a single convolution.

    Attributes:
        layers: PEFT's layers, in order.
        mask: which values of the input are kept, flat; see `dropout.Masks`.
        noted: where `Masks` has them note what a mask must hold.
    """

    mask: torch.Tensor | None = None
    noted: list[int] | None = None

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

    @property
    def first(self) -> list[torch.nn.Parameter]:
        """The layers' A matrices."""
        return [layer.lora_A[ADAPTER].weight for layer in self.layers]

    @property
    def second(self) -> list[torch.nn.Parameter]:
        """The layers' B matrices."""
        return [layer.lora_B[ADAPTER].weight for layer in self.layers]

    @abstractmethod
    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`W x + b + B A dropout(x) · alpha / rank` of each layer, for `x` `[..., in]`."""

    @abstractmethod
    def convolution(self, x: torch.Tensor) -> torch.Tensor:
        """The output `[B, out, h, w]` of a group of one convolution."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a group of one linear layer."""
        return self.outputs(x)[0]

    def base_products(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """`W x + b` of each layer for `[n, in]`, for the adapter's product to be added to."""
        products = []
        for layer in self.layers:
            base = layer.base_layer
            if base.bias is None:
                products.append(torch.mm(rows, base.weight.t()))
            else:
                products.append(torch.addmm(base.bias, rows, base.weight.t()))
        return products

    def note(self, elements: int) -> None:
        """Tell whoever asked how many values a mask has."""
        if self.noted is not None:
            self.noted.append(elements)


class GroupedAttention:
    """diffusers' `AttnProcessor2_0` with q, k and v from groups; see `_is_groupable`."""

    def __init__(self, replaced: Any, groups: list[LayerGroup]) -> None:
        """Take the processor that is put aside, and the groups: [q k v], or [q] and [k v]."""
        self.replaced, self.groups = replaced, groups

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of `[B, S, C]` to itself or to `[B, T, D]`. No UNet of ours has a mask."""
        if attention_mask is not None:
            raise ValueError("attention with a mask is not among what is trained")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            output.view(*output.shape[:2], attn.heads, -1).transpose(1, 2)
            for group, x in zip(self.groups, (hidden_states, context), strict=False)
            for output in group.outputs(x)
        )
        joined = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](joined))
        return output


class LayerGroups:
    """The groups of one UNet: they compute its adapted layers from `install` to `remove`.

    Attributes:
        all: every group; those of attention first.
    """

    all: list[LayerGroup]

    def __init__(self, unet: UNet2DConditionModel, kind: type[LayerGroup]) -> None:
        """Find the groups of a UNet that PEFT has put an adapter on."""
        self._attentions = _grouped_attentions(unet, kind)
        grouped = [group for _, groups in self._attentions for group in groups]
        inside = {layer for group in grouped for layer in group.layers}
        adapted = [module for module in unet.modules() if isinstance(module, LoraLayer)]
        self._single = [kind([layer]) for layer in adapted if layer not in inside]
        self.all = grouped + self._single

    def install(self) -> None:
        """Have the groups compute in place of PEFT's layers."""
        for attention, groups in self._attentions:
            attention.set_processor(GroupedAttention(attention.processor, groups))
        for group in self._single:
            [layer] = group.layers
            is_convolution = isinstance(layer.base_layer, torch.nn.Conv2d)
            layer.forward = group.convolution if is_convolution else group.linear

    def remove(self) -> None:
        """Give the attention blocks their processors back; PEFT's layers are left to PEFT.

        Layers and groups know each other; parted, they and their tensors are freed at once.
        """
        for attention, _ in self._attentions:
            attention.set_processor(attention.processor.replaced)
        for group in self.all:
            for layer in group.layers:
                layer.__dict__.pop("forward", None)
            group.layers = []


def _grouped_attentions(
    unet: UNet2DConditionModel, kind: type[LayerGroup]
) -> list[tuple[Any, list[LayerGroup]]]:
    """The attention blocks whose q, k and v all have an adapter, with their groups."""
    found = []
    for module in unet.modules():
        if isinstance(module, Attention) and _is_groupable(module):
            q, k, v = module.to_q, module.to_k, module.to_v
            groups = [[q], [k, v]] if module.is_cross_attention else [[q, k, v]]
            found.append((module, [kind(layers) for layers in groups]))
    return found


def _is_groupable(attention: Any) -> bool:
    """Whether nothing is between input, projections and attention, and no residual after it."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and all(isinstance(getattr(attention, p), LoraLayer) for p in ("to_q", "to_k", "to_v"))
        and not any(
            getattr(attention, part) is not None
            for part in ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
        )
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def product_dtype(group: LayerGroup) -> torch.dtype:
    """The dtype that products of a group are computed in now."""
    weight: torch.Tensor = group.layers[0].base_layer.weight
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def dropout_rate(layer: Any) -> float:
    """The rate at which `layer` drops values now: 0 in eval mode."""
    dropout = layer.lora_dropout[ADAPTER]
    return float(dropout.p) if dropout.training and hasattr(dropout, "p") else 0.0
