"""The low-rank adapter's own arithmetic: layers with one input in one product.

PEFT says how an adapter begins and what it is called; its weights become views of one flat buffer,
so the half-precision copy for the products is one kernel too. Where layers have one input, their
first matrices lie beside each other and are multiplied as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from worker.training.adapter_weights import ADAPTER, AdapterWeights, gather
from worker.training.dropout import Masks, new_mask
from worker.training.layer_groups import LayerGroup, LayerGroups, dropout_rate, product_dtype


class _Group(LayerGroup):
    """A group of one adapter.

    Attributes:
        a: the layers' first matrices one above the other, `[n * r, in]`, or `[r, in, k, k]`.
        b: their second matrices times alpha / rank, `[out, r]` each, or `[out, r, 1, 1]`; more
            where values are dropped, by which the others would be larger.

    `a` and `b` are part of the graph from the buffer to the loss, made anew for each forward pass.
    """

    a: torch.Tensor
    b: list[torch.Tensor]

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`W x + b + B A dropout(x) · alpha / rank` of each layer, for `x` `[..., in]`."""
        rows = x.reshape(-1, x.shape[-1]).to(self.a.dtype)
        products = zip(self.base_products(rows), self.inner(rows), self.b, strict=True)
        # In place: nobody needs the base's product by itself.
        outputs = [base.addmm_(inner, up.t()) for base, inner, up in products]
        return [output.view(*x.shape[:-1], output.shape[-1]) for output in outputs]

    def inner(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`A dropout(x)`, `[rows, r]` for each layer. Each drops values of its own, as in PEFT."""
        count = len(self.layers)
        self.note(count * rows.numel())
        if self.mask is None:
            inner = functional.linear(rows, self.a)
            return torch.split(inner, len(self.a) // count, dim=1)
        dropped = rows * self.mask.view(count, *rows.shape)
        return torch.bmm(dropped, self.a.view(count, -1, rows.shape[1]).transpose(1, 2)).unbind()

    def convolution(self, x: torch.Tensor) -> torch.Tensor:
        """The output `[B, out, h, w]` of a group of one convolution."""
        [layer], [up] = self.layers, self.b
        base = layer.base_layer
        self.note(x.numel())
        inner = functional.conv2d(
            x if self.mask is None else x * self.mask.view(x.shape),
            self.a,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
        )
        output: torch.Tensor = base(x) + functional.conv2d(inner, up)
        return output


class LowRankArithmetic(AdapterWeights):
    """Replaces PEFT's forward passes on one UNet, from `__init__` to `remove`.

    The buffer has all A matrices, then all B matrices.

    Attributes:
        scale: alpha / rank. rank: of every matrix. size_a: elements of all A matrices.
    """

    groups: list[_Group]

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Take a UNet that PEFT has just put the adapter on; its weights move into the buffer."""
        self.weights = {
            name: weight for name, weight in unet.named_parameters() if weight.requires_grad
        }
        self._layers = LayerGroups(unet, _Group)
        self.groups = self._layers.all  # type: ignore[assignment] # of the kind that was asked for
        [first, *_] = self.groups
        self.scale = float(first.layers[0].scaling[ADAPTER])
        self.rank = int(first.layers[0].r[ADAPTER])
        self.buffer = self._gather(torch.promote_types(torch.float32, unet.dtype))
        self._layers.install()
        self._masks = Masks(self.groups)
        self._hook = unet.register_forward_pre_hook(self._before_pass, with_kwargs=True)

    @property
    def dropped(self) -> float:
        """The rate at which values are dropped now: 0 in eval mode."""
        return dropout_rate(self.groups[0].layers[0])

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, the UNet is exactly its base: the second matrices are times 0."""
        scale, self.scale = self.scale, 0.0
        try:
            yield
        finally:
            self.scale = scale

    def let_go(self) -> None:
        """Free the graph of the last forward pass."""
        self._masks.hand_out(None)
        for group in self.groups:
            group.__dict__.pop("a", None)
            group.__dict__.pop("b", None)

    def remove(self) -> None:
        """Leave the UNet with PEFT's own arithmetic."""
        self._hook.remove()
        self.let_go()
        self._layers.remove()

    def _gather(self, dtype: torch.dtype) -> torch.nn.Parameter:
        first = [weight for group in self.groups for weight in group.first]
        second = [weight for group in self.groups for weight in group.second]
        self._sizes_a = [sum(w.numel() for w in group.first) for group in self.groups]
        self._sizes_b = [weight.numel() for weight in second]
        self.size_a = sum(self._sizes_a)
        return gather([*first, *second], dtype)

    def _before_pass(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        dtype, rate = product_dtype(self.groups[0]), self.dropped
        self._spread(dtype, self.scale / (1 - rate))
        self._masks.hand_out(None)  # the last pass's are freed before there are new ones
        if rate:
            elements = self._masks.elements(unet, args, kwargs)
            mask = new_mask(sum(elements), dtype, self.buffer.device).bernoulli_(1 - rate)
            self._masks.hand_out(torch.split(mask, elements))

    def _spread(self, dtype: torch.dtype, scale: float) -> None:
        """Give each group its matrices, in the dtype that products are computed in."""
        first, second = torch.split(self.flat, [self.size_a, sum(self._sizes_b)])
        flat_a = torch.split(first.to(dtype), self._sizes_a)
        flat_b = iter(torch.split((second * scale).to(dtype), self._sizes_b))
        for group, flat in zip(self.groups, flat_a, strict=True):
            group.a = flat.view(-1, *group.first[0].shape[1:])
            group.b = [next(flat_b).view(weight.shape) for weight in group.second]
