"""Many adapters on one base: the base's product once for all jobs, the adapters' side by side.

A pass has the micro-batches of J jobs one after another, all of one size. Each job's matrices lie
in a row of one tensor, ready for the products: in their dtype, the second ones times what they are
to be times, ranks padded with zeros. Nothing of a job touches another's: products are batched over
the jobs, and every other layer of the UNet treats each sample by itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from worker.training.dropout import Masks, new_mask
from worker.training.layer_groups import LayerGroup, LayerGroups, product_dtype
from worker.training.low_rank import LowRankArithmetic
from worker.training.packing.products import add_product, product
from worker.training.packing.rows import Rows, Shape


class _PackedGroup(LayerGroup):
    """A group of J adapters.

    Attributes:
        a: for each job the layers' first matrices one above the other, `[J, n * R, in · k · k]`.
        b: the second ones, `[J, out, R]` each.
        mask: for each job which values are kept, `[J, …]`.
    """

    a: torch.Tensor
    b: list[torch.Tensor]

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each layer gives for the samples of all jobs, `[J · B, …, in]`."""
        jobs, rows = len(self.a), x.reshape(-1, x.shape[-1]).to(self.a.dtype)
        outputs = []
        products = zip(self.base_products(rows), self.inner(rows), self.b, strict=True)
        for base, inner, up in products:
            # No view for autograd, which would copy the gradient of what is added to in place.
            each = torch.ops.aten._unsafe_view(base, (jobs, -1, base.shape[-1]))
            output = add_product(each, inner, up)
            outputs.append(output.view(*x.shape[:-1], output.shape[-1]))
        return outputs

    def inner(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`A dropout(x)`, `[J, rows of a job, R]` for each layer."""
        count, jobs = len(self.layers), len(self.a)
        self.note(count * rows.numel())
        each = rows.view(jobs, -1, rows.shape[-1])
        if self.mask is None:
            inner = product(each, self.a)
            return torch.split(inner, inner.shape[-1] // count, dim=2)
        dropped = each.unsqueeze(1) * self.mask.view(jobs, count, *each.shape[1:])
        down = self.a.reshape(jobs * count, -1, rows.shape[-1])
        inner = product(dropped.view(jobs * count, *each.shape[1:]), down)
        return inner.view(jobs, count, *inner.shape[1:]).unbind(1)

    def convolution(self, x: torch.Tensor) -> torch.Tensor:
        """The output for the samples of all jobs; their adapters one after another."""
        [layer], [up] = self.layers, self.b
        base, size = layer.base_layer, len(x) // len(self.a)
        self.note(x.numel())
        added = []
        for job, part in enumerate(torch.split(x, size)):
            dropped = part if self.mask is None else part * self.mask[job].view(part.shape)
            down = self.a[job].view(-1, x.shape[1], *base.kernel_size)
            inner = functional.conv2d(
                dropped, down, stride=base.stride, padding=base.padding, dilation=base.dilation
            )
            added.append(functional.conv2d(inner, up[job][:, :, None, None]))
        output: torch.Tensor = base(x) + torch.cat(added)
        return output


class PackedArithmetic:
    """Computes the passes of several jobs on one UNet, until `remove`.

    Attributes:
        rows: the matrices of the last pass's jobs, a row each.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Take a UNet that PEFT has put any adapter on, beside the layers that the jobs' are."""
        self._layers = LayerGroups(unet, _PackedGroup)
        self._groups: list[Any] = self._layers.all
        self._shapes = [_shape(group) for group in self._groups]
        self.rows = Rows(self._shapes)
        self._masks = Masks(self._groups)
        self._layers.install()
        self._jobs: Sequence[LowRankArithmetic] = ()
        self._seeds: Sequence[int] = ()
        self._hook = unet.register_forward_pre_hook(self._before_pass, with_kwargs=True)

    def take(self, jobs: Sequence[LowRankArithmetic], dropout_seeds: Sequence[int]) -> None:
        """Say whose adapters the next pass is for, and the random state of each one's masks."""
        self._jobs, self._seeds = jobs, dropout_seeds

    def give_back(self) -> None:
        """Add each job's gradient to that of its own weights."""
        # All of them first: where memory does not suffice nobody has been given any.
        gradients = [self.rows.gradient(place, job) for place, job in enumerate(self._jobs)]
        for job, gradient in zip(self._jobs, gradients, strict=True):
            if job.buffer.grad is None:
                job.buffer.grad = gradient
            else:
                job.buffer.grad += gradient

    def let_go(self) -> None:
        """Free what the last pass has left."""
        self._jobs = ()
        self._masks.hand_out(None)
        self.rows.let_go()
        for group in self._groups:
            group.__dict__.pop("a", None)
            group.__dict__.pop("b", None)

    def remove(self) -> None:
        """Leave the UNet with PEFT's own arithmetic."""
        self._hook.remove()
        self.let_go()
        self._layers.remove()

    def _before_pass(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        dtype = product_dtype(self._groups[0])
        self.rows.fill(self._jobs, dtype)
        for group, (first, second) in zip(self._groups, self.rows.matrices(), strict=True):
            group.a, group.b = first, second
        self._masks.hand_out(None)
        if any(job.dropped for job in self._jobs):
            elements = self._masks.elements(unet, args, kwargs)
            self._masks.hand_out(self._draw([n // len(self._jobs) for n in elements], dtype))

    def _draw(self, elements: list[int], dtype: torch.dtype) -> Sequence[torch.Tensor]:
        """The masks of all jobs, `[J, …]` for each group; each job's as it draws them alone."""
        jobs, total = len(self._jobs), sum(elements)
        masks = new_mask(jobs * total, dtype, self.rows.device).view(jobs, total)
        for mask, job, seed in zip(masks, self._jobs, self._seeds, strict=True):
            if job.dropped:
                torch.manual_seed(seed)
                mask.bernoulli_(1 - job.dropped)
            else:
                mask.fill_(1)
        return torch.split(masks, elements, dim=1)


def _shape(group: LayerGroup) -> Shape:
    first = group.first[0]
    return Shape(
        layers=len(group.layers),
        inputs=first[0].numel(),
        outputs=tuple(len(weight) for weight in group.second),
    )
