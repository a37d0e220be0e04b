"""A group norm whose backward pass is fast on a CPU in bfloat16 and channels-last.

Convolutions want channels-last there (four times faster), and torch's own backward of the norm
takes 70 ms for what this one does in 5: `[16, 32, 64, 64]` on one core of a Xeon with AMX.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _FastBackward(torch.autograd.Function):
    """`y = (x - mean) / std * weight + bias` over the channels of a group and all places."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        batch, channels = x.shape[:2]
        places = x.shape[2:].numel()
        y: torch.Tensor
        y, mean, rstd = torch.ops.aten.native_group_norm(
            x, weight.to(x.dtype), bias.to(x.dtype), batch, channels, places, groups, eps
        )
        ctx.save_for_backward(x, weight, mean.float(), rstd.float())
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With `a = Σ dy` and `b = Σ dy · x` a channel, all else is a few numbers a channel."""
        x, weight, mean, rstd = ctx.saved_tensors
        batch, channels = x.shape[:2]
        groups = mean.shape[-1]
        a = dy.sum(dim=(2, 3), dtype=torch.float32)
        b = (dy * x).sum(dim=(2, 3), dtype=torch.float32)
        each = channels // groups
        count = each * x.shape[2:].numel()
        mean, rstd = (v.view(batch, groups).repeat_interleave(each, 1) for v in (mean, rstd))
        normal = (b - mean * a) * rstd  # Σ dy · x̂

        def of_group(values: torch.Tensor) -> torch.Tensor:
            sums = (values * weight).view(batch, groups, each).sum(-1)
            share: torch.Tensor = sums.repeat_interleave(each, 1) / count
            return share

        along = -rstd * rstd * of_group(normal)
        shift = -rstd * of_group(a) - along * mean
        scale, along, shift = (
            v.to(x.dtype)[:, :, None, None] for v in (rstd * weight, along, shift)
        )
        dx = torch.addcmul(torch.addcmul(shift, x, along), dy, scale)
        return dx, None, normal.sum(0).to(weight.dtype), a.sum(0).to(weight.dtype), None


class FastGroupNorm(nn.GroupNorm):
    """The same norm; only images in bfloat16 take the other way back."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `[B, C, H, W]` or any other shape that torch's takes."""
        if input.dtype != torch.bfloat16 or input.dim() != 4:
            return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        normed: torch.Tensor = _FastBackward.apply(  # type: ignore[no-untyped-call]
            input, self.num_groups, self.weight, self.bias, self.eps
        )
        return normed


def with_fast_norms(model: nn.Module) -> nn.Module:
    """`model`, in place, with this norm for torch's; weights and their names stay the same."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FastGroupNorm
    return model
