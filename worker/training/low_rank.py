"""The low-rank adapter's own arithmetic: layers with one input in one product.

PEFT says which layers have an adapter, how it begins and what it is called; its weights become
views of one flat buffer, so the half-precision copy for the products is one kernel too. Where
layers have one input (q, k and v of self-attention, k and v of cross-attention), their first
matrices lie beside each other and are multiplied as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from worker.training.adapter_weights import ADAPTER, AdapterWeights, gather


class LayerGroup:
    """Adapted layers that are given the same input: linear ones, or a single convolution.

    Attributes:
        layers: PEFT's layers, in order.
        a: their first matrices one above the other, `[n * r, in]`, or `[r, in, k, k]`.
        b: their second matrices times alpha / rank, `[out, r]` each, or `[out, r, 1, 1]`.

    `a` and `b` are part of the graph from the buffer to the loss, made anew for each forward pass.
    """

    a: torch.Tensor
    b: list[torch.Tensor]

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

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`W x + b + B A dropout(x) · alpha / rank` of each layer, for `x` `[..., in]`."""
        rows = x.reshape(-1, x.shape[-1]).to(self.a.dtype)
        outputs = []
        for layer, inner, up in zip(self.layers, self.inner(rows), self.b, strict=True):
            base = layer.base_layer
            if base.bias is None:
                output = torch.mm(rows, base.weight.t())
            else:
                output = torch.addmm(base.bias, rows, base.weight.t())
            # In place: nobody needs the base's product by itself.
            output.addmm_(inner, up.t())
            outputs.append(output.view(*x.shape[:-1], output.shape[-1]))
        return outputs

    def inner(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`A dropout(x)`, `[rows, r]` for each layer. Each drops values of its own, as in PEFT."""
        count, rate = len(self.layers), _dropout_rate(self.layers[0])
        if not rate:
            inner = functional.linear(rows, self.a)
            return torch.split(inner, len(self.a) // count, dim=1)
        dropped = functional.dropout(rows.expand(count, *rows.shape), rate)
        return torch.bmm(dropped, self.a.view(count, -1, rows.shape[1]).transpose(1, 2)).unbind()

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a group of one linear layer."""
        return self.outputs(x)[0]

    def convolution(self, x: torch.Tensor) -> torch.Tensor:
        """The output `[B, out, h, w]` of a group of one convolution."""
        [layer], [up] = self.layers, self.b
        base = layer.base_layer
        inner = functional.conv2d(
            functional.dropout(x, _dropout_rate(layer)),
            self.a,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
        )
        output: torch.Tensor = base(x) + functional.conv2d(inner, up)
        return output


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


class LowRankArithmetic(AdapterWeights):
    """Replaces PEFT's forward passes on one UNet, from `__init__` to `remove`.

    The buffer has all A matrices, then all B matrices.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Take a UNet that PEFT has just put the adapter on; its weights move into the buffer."""
        self.weights = {
            name: weight for name, weight in unet.named_parameters() if weight.requires_grad
        }
        adapted = [module for module in unet.modules() if isinstance(module, LoraLayer)]
        self._grouped = _grouped_attentions(unet)
        self.groups = [group for _, groups in self._grouped for group in groups]
        inside = {layer for group in self.groups for layer in group.layers}
        single = [LayerGroup([layer]) for layer in adapted if layer not in inside]
        self.groups += single
        self._scale = float(adapted[0].scaling[ADAPTER])
        self.buffer = self._gather(torch.promote_types(torch.float32, unet.dtype))
        for attention, groups in self._grouped:
            attention.set_processor(GroupedAttention(attention.processor, groups))
        for group in single:
            [layer] = group.layers
            is_convolution = isinstance(layer.base_layer, torch.nn.Conv2d)
            layer.forward = group.convolution if is_convolution else group.linear
        self._hook = unet.register_forward_pre_hook(lambda _module, _inputs: self._spread())

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, the UNet is exactly its base: the second matrices are times 0."""
        scale, self._scale = self._scale, 0.0
        try:
            yield
        finally:
            self._scale = scale

    def let_go(self) -> None:
        """Free the graph of the last forward pass."""
        for group in self.groups:
            group.__dict__.pop("a", None)
            group.__dict__.pop("b", None)

    def remove(self) -> None:
        """Give the attention blocks their processors back; PEFT's layers are left to PEFT.

        Layers and groups know each other; parted, they and their tensors are freed at once.
        """
        self._hook.remove()
        for attention, _ in self._grouped:
            attention.set_processor(attention.processor.replaced)
        self.let_go()
        for group in self.groups:
            for layer in group.layers:
                layer.__dict__.pop("forward", None)
            group.layers = []

    def _gather(self, dtype: torch.dtype) -> torch.nn.Parameter:
        first = [weight for group in self.groups for weight in group.first]
        second = [weight for group in self.groups for weight in group.second]
        self._sizes_a = [sum(w.numel() for w in group.first) for group in self.groups]
        self._sizes_b = [weight.numel() for weight in second]
        return gather([*first, *second], dtype)

    def _spread(self) -> None:
        """Give each group its matrices, in the dtype that products are computed in."""
        dtype = self._product_dtype()
        first, second = torch.split(self.flat, [sum(self._sizes_a), sum(self._sizes_b)])
        flat_a = torch.split(first.to(dtype), self._sizes_a)
        flat_b = iter(torch.split((second * self._scale).to(dtype), self._sizes_b))
        for group, flat in zip(self.groups, flat_a, strict=True):
            group.a = flat.view(-1, *group.first[0].shape[1:])
            group.b = [next(flat_b).view(weight.shape) for weight in group.second]

    def _product_dtype(self) -> torch.dtype:
        device = self.buffer.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = self.groups[0].layers[0].base_layer.weight.dtype
        return dtype


def _grouped_attentions(unet: UNet2DConditionModel) -> list[tuple[Any, list[LayerGroup]]]:
    """The attention blocks whose q, k and v all have an adapter, with their groups."""
    found = []
    for module in unet.modules():
        if isinstance(module, Attention) and _is_groupable(module):
            q, k, v = module.to_q, module.to_k, module.to_v
            groups = [[q], [k, v]] if module.is_cross_attention else [[q, k, v]]
            found.append((module, [LayerGroup(layers) for layers in groups]))
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


def _dropout_rate(layer: Any) -> float:
    """The rate at which `layer` drops values now: 0 in eval mode."""
    dropout = layer.lora_dropout[ADAPTER]
    return float(dropout.p) if dropout.training and hasattr(dropout, "p") else 0.0
