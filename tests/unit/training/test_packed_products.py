"""The packed layers' own gradients are those of the mathematics, dropout included."""

import pytest
import torch
from torch.autograd import gradcheck

from worker.training.packing.arithmetic import _PackedGroup
from worker.training.packing.products import add_product, product


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def linear(inputs, outputs, *, bias):
    layer = torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    adapted = torch.nn.Module()
    adapted.base_layer = layer.requires_grad_(requires_grad=False)
    return adapted


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(3)


def test_gradients_of_products_are_right():
    assert gradcheck(product, (numbers(3, 5, 4), numbers(3, 2, 4)))
    assert gradcheck(
        lambda to, x, w: add_product(to * 1, x, w),
        (numbers(3, 5, 6), numbers(3, 5, 2), numbers(3, 6, 2)),
    )


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_a_group_of_layers_are_right_with_dropout_on(layers, dropped, bias):
    jobs, batch, rows, width, out, rank = 2, 1, 4, 3, 5, 2
    group = _PackedGroup([linear(width, out, bias=bias) for _ in range(layers)])
    if dropped:
        kept = torch.rand(jobs, layers * batch * rows * width) < 0.6
        assert 0 < kept.sum() < kept.numel()
        group.mask = kept.double()

    def outputs(x, a, *b):
        group.a, group.b = a, list(b)
        return tuple(group.outputs(x))

    x = numbers(jobs * batch, rows, width)
    a = numbers(jobs, layers * rank, width)
    b = [numbers(jobs, out, rank) for _ in range(layers)]
    assert gradcheck(outputs, (x, a, *b))


def test_a_gradient_check_would_notice_a_mask_that_the_backward_pass_forgets():
    class Forgetful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            mask = (torch.arange(x.numel()).view(x.shape) % 3 > 0).double()
            ctx.save_for_backward(x, w)
            return torch.bmm(x * mask, w.transpose(1, 2))

        @staticmethod
        def backward(ctx, gradient):
            x, w = ctx.saved_tensors
            return torch.bmm(gradient, w), torch.bmm(gradient.transpose(1, 2), x)

    assert not gradcheck(
        Forgetful.apply, (numbers(2, 3, 4), numbers(2, 2, 4)), raise_exception=False
    )
