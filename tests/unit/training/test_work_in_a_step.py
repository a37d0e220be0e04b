"""Exact gates: the arithmetic, the kernels and the kept memory of one step of Stable Diffusion 1.5.

Counted on the `meta` device, so that they repeat to the last unit on any machine.
"""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.counted import _as_on_a_gpu, _saved, encoder_work, packed_work, step_work
from worker.contract.base_model import BaseModelEntry
from worker.contract.base_model_choice import for_base_model
from worker.contract.parameters import TrainingParameters
from worker.demo.tiny_families import random_denoiser
from worker.training.adapter import add_adapter, add_text_adapter
from worker.training.families.known import FAMILIES

GIB = 2**30


@pytest.fixture(scope="module")
def ours():
    return step_work()


def test_a_step_on_cached_latents_is_at_most_1790_gflop(ours):
    assert 1700 < ours.gflop <= 1790
    assert (ours.gflop + encoder_work().gflop) / ours.gflop > 1.6


def test_a_step_launches_at_most_2400_kernels_with_dropout_and_a_quarter_less_than_peft(ours):
    dropout = step_work(dropout=0.1)
    assert ours.kernels <= 2100
    assert dropout.kernels <= 2400
    assert dropout.kernels < 0.75 * step_work(dropout=0.1, grouped=False).kernels


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_eight_jobs_in_a_pass_launch_hardly_more_kernels_than_one(dropout):
    alone, packed = step_work(dropout=dropout), packed_work(8, dropout=dropout)
    assert packed.kernels < 1.06 * alone.kernels
    assert packed.gflop == pytest.approx(8 * alone.gflop, rel=0.01)
    assert packed.saved_gib < 8.1 * alone.saved_gib


def test_checkpointing_costs_a_third_more_arithmetic_and_keeps_a_fifth(ours):
    recomputed = step_work(checkpointing=True)
    assert recomputed.gflop / ours.gflop == pytest.approx(1.33, abs=0.01)
    assert recomputed.saved_gib / ours.saved_gib < 0.2


@pytest.mark.parametrize(
    ("family", "resolution", "dtype"),
    [
        *(("sd1", 256, dtype) for dtype in (torch.bfloat16, torch.float32)),
        *(("sd1", 768, dtype) for dtype in (torch.bfloat16, torch.float32)),
        ("sd2", 768, torch.bfloat16),
        ("sdxl", 1024, torch.bfloat16),
        ("sd3", 1024, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "dropout", "checkpointing"])
def test_the_plan_expects_what_the_forward_pass_keeps(family, resolution, kind, dtype):
    kept = step_work(
        family=family,
        resolution=resolution,
        dropout=0.1 if kind == "dropout" else 0,
        checkpointing=kind == "checkpointing",
        dtype=dtype,
    )
    rules = TrainingParameters(
        resolution=resolution,
        lora_dropout=0.1 if kind == "dropout" else 0,
        mixed_precision="no" if dtype == torch.float32 else "bf16",
    )
    planned = FAMILIES[family].memory.saved_bytes(rules, checkpointing=kind == "checkpointing")
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.15, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned


def test_dropout_beside_checkpointing_is_recomputed_too():
    both = step_work(dropout=0.1, checkpointing=True).saved_gib * GIB
    rules = TrainingParameters(lora_dropout=0.1)
    planned = FAMILIES["sd1"].memory.saved_bytes(rules, checkpointing=True)
    assert both == pytest.approx(planned, rel=0.15)


@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize(
    ("family", "chosen"),
    [
        ("sd1", {"target_modules": "attn-mlp"}),
        ("sd1", {"use_dora": True}),
        ("sd1", {"target_modules": "attn-mlp", "use_dora": True}),
        ("sd2", {"target_modules": "attn-mlp", "use_dora": True}),
        ("sdxl", {"use_dora": True}),
        ("sd3", {"target_modules": "attn-mlp", "use_dora": True}),
    ],
)
def test_the_plan_expects_what_other_kinds_of_adapter_keep(family, chosen, dropout):
    kept = step_work(family=family, resolution=256, dropout=dropout, **chosen)
    rules = TrainingParameters(resolution=256, lora_dropout=dropout, **chosen)
    memory = FAMILIES[family].memory
    planned = memory.saved_bytes(rules, checkpointing=False)
    planned += memory.saved_of_weights_bytes(rules, checkpointing=False)
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.05, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["attn", "attn-mlp"])
@pytest.mark.parametrize("rank", [4, 64])
def test_the_plan_expects_the_weights_that_the_adapter_has(family, targets, rank):
    base = BaseModelEntry(name=family, location=family, family=family)
    rules = for_base_model(TrainingParameters(target_modules=targets, rank=rank), base)
    with torch.device("meta"):
        unet = random_denoiser(family, "full").requires_grad_(requires_grad=False)
        weights = add_adapter(unet, rules, seed=1).buffer.numel()
    # AdamW: weight, gradient, its copy for a recorded step, and two moments.
    assert FAMILIES[family].memory.adapter_bytes(rules) == weights * 5 * 4


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("sd1", {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}),
        ("sd2", {"num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}),
    ],
)
def test_the_plan_expects_what_a_trained_text_encoder_takes(family, sizes):
    hidden = 64 * sizes["num_attention_heads"]
    with torch.device("meta"):
        encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=hidden, intermediate_size=4 * hidden, **sizes)
        )
        encoder.requires_grad_(requires_grad=False)
        weights = add_text_adapter(encoder, TrainingParameters(rank=1), seed=1).buffer.numel()
        saved = {}
        with _as_on_a_gpu(), _saved(encoder, saved):
            encoder(torch.zeros(1, 77, dtype=torch.int64))
    plain, trained = TrainingParameters(rank=1), TrainingParameters(rank=1, train_text_encoder=True)
    memory = FAMILIES[family].memory
    assert memory.adapter_bytes(trained) - memory.adapter_bytes(plain) == weights * 5 * 4
    added = memory.training_bytes(trained, 1, checkpointing=False)
    added -= memory.training_bytes(plain, 1, checkpointing=False)
    assert sum(saved.values()) + weights * 5 * 4 == pytest.approx(added, rel=0.03)
