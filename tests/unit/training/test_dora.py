"""DoRA: PEFT's arithmetic on the one buffer; begins as the base, trains, resumes, reloads."""

import gc
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from tests.unit.training.builders import build, command, digests, last_checkpoint, run
from tests.unit.training.test_low_rank import inputs, load, trained
from worker.contract.parameters import TrainingParameters
from worker.training.adapter import add_adapter, remove_adapter
from worker.training.base_model import BaseModelShelf
from worker.training.evaluate import base_loss, fixed_loss
from worker.training.step import optimizer_step

TARGETS = ["attn", "attn-mlp", ["to_q", "proj_in", "conv1"]]


def reference(folder, rules, weights, dtype):
    """A UNet that plain PEFT computes, its adapter beginning with `weights`."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(requires_grad=False)
    unet.add_adapter(
        LoraConfig(
            r=rules.rank,
            lora_alpha=rules.lora_alpha,
            target_modules=list(rules.target_modules),
            use_dora=True,
        )
    )
    unet.to(dtype)
    adapter = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    assert adapter.keys() == weights.keys()
    with torch.no_grad():
        for name, weight in adapter.items():
            weight.copy_(weights[name])
    return unet.train(), adapter


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_peft(tiny_base_model, targets, checkpointing):
    dtype, tolerance = torch.float64, 1e-12
    rules = TrainingParameters(
        rank=4, lora_alpha=7, lora_dropout=0, target_modules=targets, use_dora=True
    )
    unet = load(tiny_base_model, dtype).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    arithmetic = trained(unet, rules)
    assert any("lora_magnitude_vector" in name for name in arithmetic.weights)
    peft, weights = reference(tiny_base_model, rules, arithmetic.weights, dtype)
    ours, theirs = (one(*inputs(dtype)).sample for one in (unet, peft))
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = arithmetic.views(arithmetic.buffer.grad)
    for name, weight in weights.items():
        scale = weight.grad.abs().max()
        assert scale > 0
        assert (gradients[name] - weight.grad).abs().max() < 100 * tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_exactly_the_base_in_half_precision_too(tiny_base_model, dtype):
    """PEFT takes the magnitudes in the base's dtype, and so begins a rounding away from it."""
    rules = TrainingParameters(use_dora=True, lora_dropout=0)
    bare, unet = load(tiny_base_model, dtype).eval(), load(tiny_base_model, dtype).eval()
    arithmetic = add_adapter(unet, rules, seed=1)
    assert arithmetic.buffer.dtype == torch.float32
    with torch.no_grad():
        expected, found = bare(*inputs(dtype)).sample, unet(*inputs(dtype)).sample
    limit = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert (found - expected).abs().max() <= limit * expected.abs().max()


def test_a_silent_adapter_leaves_exactly_the_base(tiny_base_model):
    bare, unet = load(tiny_base_model).eval(), load(tiny_base_model)
    arithmetic = trained(unet, TrainingParameters(rank=4, use_dora=True))
    unet.eval()
    with torch.no_grad():
        expected, heard = bare(*inputs(torch.float32)).sample, unet(*inputs(torch.float32)).sample
        with arithmetic.silent():
            silent = unet(*inputs(torch.float32)).sample
        assert torch.equal(unet(*inputs(torch.float32)).sample, heard)
    assert torch.allclose(silent, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(heard, expected, rtol=0, atol=1e-3)


def test_nothing_is_left_on_the_base_after_a_job(tiny_base_model):
    unet = load(tiny_base_model)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    trained(unet, TrainingParameters(use_dora=True))
    unet(*inputs(torch.float32)).sample.sum().backward()
    remove_adapter(unet)
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not unet._forward_pre_hooks


def test_the_buffer_is_freed_with_the_adapter_and_waits_for_no_garbage_collection(tiny_base_model):
    unet = load(tiny_base_model).train()
    arithmetic = trained(unet, TrainingParameters(rank=4, use_dora=True))
    unet(*inputs(torch.float32)).sample.sum().backward()
    freed = weakref.ref(arithmetic.buffer)
    gc.disable()
    try:
        remove_adapter(unet)
        del arithmetic
        assert freed() is None
    finally:
        gc.enable()


def test_every_part_of_the_adapter_learns(tiny_base_model, pictures, tmp_path):
    rules = {"use_dora": True, "max_train_steps": 40, "learning_rate": 1e-3}
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **rules))
    start = {name: weight.clone() for name, weight in trainee.weights.items()}
    for _ in range(40):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    assert all(not torch.equal(start[name], weight) for name, weight in trainee.weights.items())
    before, after = base_loss(trainee, lesson), fixed_loss(trainee, lesson)
    assert after < 0.97 * before


@pytest.mark.parametrize("rules", [{}, {"optimizer": "adafactor"}, {"mixed_precision": "bf16"}])
def test_a_job_exports_both_formats_and_a_resume_ends_bit_identical(
    tiny_base_model, pictures, tmp_path, rules
):
    shelf = BaseModelShelf()
    rules = {"use_dora": True, "target_modules": "attn-mlp", "learning_rate": 1e-3} | rules

    def job(name, **more):
        return command(tiny_base_model, pictures, tmp_path / name, **rules, **more)

    whole, _ = run(job("whole"), shelf)
    assert len(digests(whole)) == 2
    for step in (1, 4):
        _, events = run(job(f"stopped-{step}"), shelf, stop_after=step)
        again, _ = run(job(f"on-{step}", resume_from=last_checkpoint(events)), shelf)
        assert again.metadata["resumed_at_step"] == step
        assert digests(again) == digests(whole)
    plain, _ = run(command(tiny_base_model, pictures, tmp_path / "plain"))
    warm, _ = run(command(tiny_base_model, pictures, tmp_path / "warm"), shelf)
    assert digests(plain) == digests(warm)
