"""Our arithmetic of the adapter is PEFT's, and leaves nothing behind."""

import gc
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from tests.unit.training.reference_loop import reference_unet
from worker.contract.parameters import TrainingParameters
from worker.training.adapter import add_adapter, remove_adapter
from worker.training.layer_groups import GroupedAttention

TARGETS = ["attn", "attn-mlp", ["to_q"], ["to_q", "to_v"], ["to_k", "proj_in", "conv1"]]


def load(folder, dtype=torch.float32):
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    return unet.requires_grad_(requires_grad=False)


def trained(unet, rules):
    """An adapter whose second matrices are not zero, as after some steps."""
    arithmetic = add_adapter(unet, rules, seed=1)
    with torch.no_grad():
        source = torch.Generator().manual_seed(3)
        arithmetic.buffer.add_(0.02 * torch.randn(arithmetic.buffer.shape, generator=source))
    return arithmetic


def inputs(dtype):
    source = torch.Generator().manual_seed(5)
    noisy = torch.randn(2, 4, 8, 8, generator=source, dtype=dtype)
    prompts = torch.randn(2, 77, 32, generator=source, dtype=dtype)
    return noisy, torch.tensor([10, 700]), prompts


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_outputs_and_gradients_are_those_of_peft(tiny_base_model, targets, dtype, tolerance):
    rules = TrainingParameters(rank=4, lora_alpha=7, lora_dropout=0, target_modules=targets)
    unet = load(tiny_base_model, dtype).train()
    arithmetic = trained(unet, rules)
    peft, weights = reference_unet(str(tiny_base_model), rules, arithmetic.weights)
    ours, theirs = (one(*inputs(dtype)).sample for one in (unet, peft.to(dtype)))
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = arithmetic.views(arithmetic.buffer.grad)
    assert gradients.keys() == weights.keys()
    for name, weight in weights.items():
        scale = weight.grad.abs().max()
        assert scale > 0
        assert (gradients[name] - weight.grad).abs().max() < 100 * tolerance * scale


def test_the_weights_are_views_of_one_buffer_under_pefts_names(tiny_base_model):
    unet = load(tiny_base_model)
    arithmetic = add_adapter(unet, TrainingParameters(rank=4), seed=1)
    named = dict(unet.named_parameters())
    assert {name for name in named if "lora_" in name} == arithmetic.weights.keys()
    for name, weight in arithmetic.weights.items():
        assert named[name] is weight
        assert weight.untyped_storage().data_ptr() == arithmetic.buffer.data.data_ptr()
    assert sum(weight.numel() for weight in arithmetic.weights.values()) == len(arithmetic.buffer)
    assert [p for p in unet.parameters() if p.requires_grad] == []


def test_each_layer_of_a_group_drops_values_of_its_own(tiny_base_model):
    unet = load(tiny_base_model).train()
    add_adapter(unet, TrainingParameters(rank=32, lora_dropout=0.25), seed=1)
    [group] = [g for g in unet.low_rank_arithmetic.groups if len(g.layers) == 3][:1]
    width = group.layers[0].in_features
    torch.manual_seed(1)
    noisy, timesteps, prompts = inputs(torch.float32)
    unet(noisy.repeat(4, 1, 1, 1), timesteps.repeat(4), prompts.repeat(4, 1, 1))
    rows = group.mask.numel() // 3 // width
    assert rows == 8 * 8 * 8
    group.a = torch.eye(width).repeat(3, 1)  # what comes out is what went in and was not dropped
    parts = group.inner(torch.ones(rows, width))
    for part in parts:
        assert part.unique().tolist() == [0, 1]
        assert (part == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    q, k, v = (part == 0 for part in parts)
    for one, other in ((q, k), (q, v), (k, v)):
        assert (one & other).float().mean() == pytest.approx(0.25**2, abs=0.02)
    unet.eval()
    unet(*inputs(torch.float32))
    assert {one.mask for one in unet.low_rank_arithmetic.groups} == {None}


def test_dropout_keeps_the_outputs_mean_and_is_recomputed_from_the_same_masks(tiny_base_model):
    unet = load(tiny_base_model).train()
    arithmetic = trained(unet, TrainingParameters(rank=4, lora_dropout=0.5, lora_alpha=0.4))
    with torch.no_grad():
        outputs = torch.stack([unet(*inputs(torch.float32)).sample for _ in range(300)])
        with arithmetic.silent():
            base = unet(*inputs(torch.float32)).sample
        unet.eval()
        whole = unet(*inputs(torch.float32)).sample
    # What the adapter adds is small here, so the model is nearly linear in it.
    off = (outputs.mean(0) - whole).abs().mean() / (whole - base).abs().mean()
    assert (outputs[0] - outputs[1]).abs().max() > 0
    assert off < 0.2


def test_masks_depend_on_the_random_state_and_not_on_what_went_before(tiny_base_model):
    rules = TrainingParameters(rank=4, lora_dropout=0.3, target_modules=["attn1.to_q", "conv1"])
    first, later = (load(tiny_base_model).train() for _ in range(2))
    for unet in (first, later):
        trained(unet, rules)
    noisy, timesteps, prompts = inputs(torch.float32)
    with torch.no_grad():
        later(noisy[:1], timesteps[:1], prompts[:1])
        torch.manual_seed(9)
        expected = first(noisy, timesteps, prompts).sample
        torch.manual_seed(9)
        assert torch.equal(later(noisy, timesteps, prompts).sample, expected)
        assert not torch.equal(later(noisy, timesteps, prompts).sample, expected)


def test_a_silent_adapter_leaves_exactly_the_base(tiny_base_model):
    bare = load(tiny_base_model)
    unet = load(tiny_base_model)
    arithmetic = trained(unet, TrainingParameters(rank=4))
    for one in (bare, unet):
        one.eval()
    with torch.no_grad():
        expected, heard = bare(*inputs(torch.float32)).sample, unet(*inputs(torch.float32)).sample
        with arithmetic.silent():
            silent = unet(*inputs(torch.float32)).sample
    assert torch.allclose(silent, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(heard, expected, rtol=0, atol=1e-3)


def test_nothing_is_left_on_the_base_after_a_job(tiny_base_model):
    unet = load(tiny_base_model)
    before = {name: type(processor) for name, processor in unet.attn_processors.items()}
    modules = [name for name, _ in unet.named_modules()]
    trained(unet, TrainingParameters(target_modules="attn-mlp"))
    assert {type(one) for one in unet.attn_processors.values()} == {GroupedAttention}
    remove_adapter(unet)
    assert {name: type(one) for name, one in unet.attn_processors.items()} == before
    assert set(before.values()) == {AttnProcessor2_0}
    assert [name for name, _ in unet.named_modules()] == modules
    assert not unet._forward_pre_hooks
    assert not hasattr(unet, "low_rank_arithmetic")


def test_the_buffer_is_freed_with_the_adapter_and_waits_for_no_garbage_collection(tiny_base_model):
    """On a GPU it would hold memory that the next job was planned with."""
    unet = load(tiny_base_model).train()
    arithmetic = trained(unet, TrainingParameters(rank=4, target_modules="attn-mlp"))
    unet(*inputs(torch.float32)).sample.sum().backward()
    freed = weakref.ref(arithmetic.buffer)
    gc.disable()
    try:
        remove_adapter(unet)
        del arithmetic
        assert freed() is None
    finally:
        gc.enable()


def test_over_a_half_precision_base_products_are_in_its_dtype_and_weights_in_fp32(tiny_base_model):
    unet = load(tiny_base_model, torch.bfloat16).train()
    arithmetic = trained(unet, TrainingParameters(rank=4))
    noisy, timesteps, prompts = inputs(torch.bfloat16)
    output = unet(noisy, timesteps, prompts).sample
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert arithmetic.buffer.dtype == arithmetic.buffer.grad.dtype == torch.float32
    assert bool(arithmetic.buffer.grad.isfinite().all())
    assert {group.a.dtype for group in arithmetic.groups} == {torch.bfloat16}
