"""The text encoder's adapter: trained beside the UNet's in one buffer, exported, loaded back."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextModel

from tests.unit.training.builders import (
    CPU,
    build,
    command,
    digests,
    largest_difference,
    last_checkpoint,
    run,
    weights_of,
)
from tests.unit.training.reference_loop import reference_unet
from worker.contract.base_model import BaseModelEntry
from worker.training.adapter import TEXT_ENCODER
from worker.training.base_model import BaseModelShelf
from worker.training.device import arithmetic_for
from worker.training.evaluate import base_loss, fixed_loss
from worker.training.step import optimizer_step

RULES = {"train_text_encoder": True, "learning_rate": 1e-3, "rank": 4, "lora_alpha": 7}


def advance(trainee, lesson, steps):
    for _ in range(steps):
        optimizer_step(trainee, lesson)
        trainee.step += 1


def of_text(weights):
    return {name: w for name, w in weights.items() if name.startswith(TEXT_ENCODER)}


def of_unet(weights):
    return {name: w for name, w in weights.items() if not name.startswith(TEXT_ENCODER)}


def test_both_adapters_learn_and_lie_in_one_buffer(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **RULES))
    start = weights_of(trainee)
    storage = trainee.adapter.buffer.data.data_ptr()
    assert {w.untyped_storage().data_ptr() for w in trainee.weights.values()} == {storage}
    assert sum(w.numel() for w in trainee.weights.values()) == len(trainee.adapter.buffer)
    advance(trainee, lesson, 6)
    ended = weights_of(trainee)
    assert len(of_text(ended)) > 0
    assert all(not torch.equal(start[name], ended[name]) for name in ended)
    assert fixed_loss(trainee, lesson) < base_loss(trainee, lesson)


def plain_text_encoder(location, rules, weights):
    """A text encoder that PEFT computes, its adapter with `weights`, in double precision."""
    encoder = CLIPTextModel.from_pretrained(location, subfolder="text_encoder")
    encoder.requires_grad_(requires_grad=False)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    encoder.add_adapter(
        LoraConfig(r=rules.rank, lora_alpha=rules.lora_alpha, target_modules=targets)
    )
    encoder.double()
    adapter = {name: w for name, w in encoder.named_parameters() if w.requires_grad}
    assert {TEXT_ENCODER + name for name in adapter} == weights.keys()
    with torch.no_grad():
        for name, weight in adapter.items():
            weight.copy_(weights[TEXT_ENCODER + name])
    return encoder, adapter


def test_outputs_and_gradients_are_those_of_peft(tiny_base_model, pictures, tmp_path):
    rules = {**RULES, "lora_dropout": 0}
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **rules), double=True)
    advance(trainee, lesson, 2)  # now no second matrix is zero
    state, rules = weights_of(trainee), lesson.parameters
    unet, unet_weights = reference_unet(str(tiny_base_model), rules, of_unet(state))
    encoder, text_weights = plain_text_encoder(tiny_base_model, rules, of_text(state))
    numbers = torch.tensor([0, 2])
    noisy = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def output(unet, hidden):
        return unet(noisy, torch.tensor([10, 700]), hidden).sample

    captions = lesson.dataset.embeddings
    ours = output(trainee.unet, captions.told(numbers, None, trainee.text_encoder).states)
    theirs = output(unet, encoder(captions.tokens[numbers])[0])
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    found = trainee.adapter.views(trainee.adapter.buffer.grad)
    expected = unet_weights | {TEXT_ENCODER + name: w for name, w in text_weights.items()}
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        scale = weight.grad.abs().max()
        assert scale > 0
        assert (found[name] - weight.grad).abs().max() < 1e-9 * scale


def test_a_fresh_or_silent_adapter_encodes_captions_as_the_cache_has_them(
    tiny_base_model, pictures, tmp_path
):
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **RULES))
    captions, numbers = lesson.dataset.embeddings, torch.arange(3)

    def prompts():
        return captions.told(numbers, None, trainee.text_encoder).states

    with torch.no_grad():
        fresh = prompts()
        assert torch.allclose(fresh, captions.states[numbers], atol=1e-5)
        with torch.enable_grad():
            advance(trainee, lesson, 3)
        heard = prompts()
        assert not torch.allclose(heard, fresh, atol=1e-4)
        with trainee.adapter.silent():
            assert torch.allclose(prompts(), fresh, atol=1e-5)
        assert torch.equal(prompts(), heard)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_another_learning_rate_moves_the_text_encoder_by_as_much_more(
    tiny_base_model, pictures, tmp_path, optimizer
):
    def after_one_step(**more):
        rules = {**RULES, "optimizer": optimizer, "max_grad_norm": 0, **more}
        _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **rules))
        start = weights_of(trainee)
        advance(trainee, lesson, 1)
        return {name: weight - start[name] for name, weight in weights_of(trainee).items()}

    same, tenth = after_one_step(), after_one_step(text_encoder_learning_rate=1e-4)
    assert largest_difference(of_unet(same), of_unet(tenth)) == 0
    moved = {name: 0.1 * value for name, value in of_text(same).items()}
    assert largest_difference(moved, of_text(tenth)) < 1e-7
    assert max(float(value.abs().max()) for value in moved.values()) > 1e-5
    # As if there were no other: the rate is what AdamW itself would take.
    whole = after_one_step(learning_rate=1e-4)
    assert largest_difference(of_text(whole), of_text(tenth)) < 1e-7


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"text_encoder_learning_rate": 5e-5, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
        {"optimizer": "adafactor"},
        {"mixed_precision": "bf16"},
    ],
)
def test_a_job_exports_both_files_and_a_resume_ends_bit_identical(
    tiny_base_model, pictures, tmp_path, more
):
    shelf = BaseModelShelf()

    def job(name, **others):
        return command(tiny_base_model, pictures, tmp_path / name, **RULES, **more, **others)

    whole, _ = run(job("whole"), shelf)
    assert len(digests(whole)) == 2
    for step in (1, 4):
        _, events = run(job(f"stopped-{step}"), shelf, stop_after=step)
        again, _ = run(job(f"on-{step}", resume_from=last_checkpoint(events)), shelf)
        assert again.metadata["resumed_at_step"] == step
        assert again.metadata["resumed_exactly"]
        assert digests(again) == digests(whole)


def test_nothing_is_left_on_the_text_encoder_after_a_job(tiny_base_model, pictures, tmp_path):
    shelf = BaseModelShelf()
    entry = BaseModelEntry(name="tiny", location=str(tiny_base_model))
    model = shelf.get(entry, arithmetic_for("no", CPU))
    before = {
        name: value.clone() for name, value in model.text_encoders[0].model.state_dict().items()
    }
    alone, _ = run(command(tiny_base_model, pictures, tmp_path / "alone"))
    run(command(tiny_base_model, pictures, tmp_path / "text", **RULES), shelf)
    after = model.text_encoders[0].model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not model.text_encoders[0].model._forward_pre_hooks
    assert not any(weight.requires_grad for weight in model.text_encoders[0].model.parameters())
    warm, _ = run(command(tiny_base_model, pictures, tmp_path / "warm"), shelf)
    assert digests(warm) == digests(alone)


@pytest.mark.parametrize("name", ["lora_weights.safetensors", "lora_weights.kohya.safetensors"])
def test_one_line_of_plain_diffusers_loads_both_adapters_at_full_strength(
    tiny_base_model, pictures, tmp_path, name
):
    order = command(tiny_base_model, pictures, tmp_path, **RULES)
    run(order)
    _, trainee, lesson = build(order)
    advance(trainee, lesson, 6)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_model)
    pipeline.load_lora_weights(str(tmp_path / "out" / name))
    for model in (pipeline.unet, pipeline.text_encoder):
        layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
        assert layers
        assert {scale for part in layers for scale in part.scaling.values()} == {7 / 4}
    tokens = lesson.dataset.embeddings.tokens[:2]
    with torch.no_grad():
        ours = trainee.text_encoder(tokens)[0]
        theirs = pipeline.text_encoder.eval()(tokens)[0]
        inputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
        drawn = [
            unet.eval()(*inputs, hidden).sample
            for unet, hidden in ((trainee.unet, ours), (pipeline.unet, theirs))
        ]
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-6)
    assert torch.allclose(*drawn, rtol=0, atol=1e-5)


def test_both_files_have_the_names_that_readers_look_up(tiny_base_model, pictures, tmp_path):
    run(command(tiny_base_model, pictures, tmp_path, **RULES))
    plain = safetensors.torch.load_file(tmp_path / "out" / "lora_weights.safetensors")
    kohya = safetensors.torch.load_file(tmp_path / "out" / "lora_weights.kohya.safetensors")
    layer = "encoder.layers.0.self_attn"
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        for half in ("lora_A", "lora_B"):
            assert f"text_encoder.text_model.{layer}.{part}.{half}.weight" in plain
        name = f"lora_te_text_model_{layer.replace('.', '_')}_{part}"
        assert kohya[f"{name}.alpha"].item() == 7
        assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight"} <= kohya.keys()
    with safetensors.safe_open(tmp_path / "out" / "lora_weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["text_encoder.r"] == metadata["unet.r"] == 4
    assert metadata["text_encoder.lora_alpha"] == metadata["unet.lora_alpha"] == 7
