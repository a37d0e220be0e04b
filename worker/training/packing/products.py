"""Batched products whose gradients come out in the layout of what they are the gradients of.

`x @ w.transpose(1, 2)` would do. But autograd gives the gradient of `w` transposed, and it has to
be copied for where the matrices of a job lie in one row: a kernel for each matrix in every pass.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return torch.bmm(x, w.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        of_x, of_w = ctx.needs_input_grad
        return (
            torch.bmm(gradient, w) if of_x else None,
            torch.bmm(gradient.transpose(1, 2), x) if of_w else None,
        )


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, to: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.mark_dirty(to)
        return to.baddbmm_(x, w.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return (
            gradient,
            torch.bmm(gradient, w),
            torch.bmm(gradient.transpose(1, 2), x),
        )


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`x wᵀ` for each of J: `[J, n, k]` and `[J, m, k]` give `[J, n, m]`."""
    result: torch.Tensor = _Product.apply(x, w)  # type: ignore[no-untyped-call]
    return result


def add_product(to: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """`to + x wᵀ` in place of `to` `[J, n, m]`, which must be no view."""
    result: torch.Tensor = _AddProduct.apply(to, x, w)  # type: ignore[no-untyped-call]
    return result
