"""Exact gates: the arithmetic, the kernels and the kept memory of one step of Stable Diffusion 1.5.

Counted on the `meta` device, so that they repeat to the last unit on any machine.
"""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.counted import _as_on_a_gpu, _saved, encoder_work, step_work
from worker.contract.parameters import TrainingParameters
from worker.demo.tiny_base_model import random_unet
from worker.training.adapter import add_adapter, add_text_adapter
from worker.training.plan import (
    adapter_bytes,
    adapter_kind,
    needed_bytes,
    saved_bytes,
    saved_of_weights_bytes,
)

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


def test_checkpointing_costs_a_third_more_arithmetic_and_keeps_a_fifth(ours):
    recomputed = step_work(checkpointing=True)
    assert recomputed.gflop / ours.gflop == pytest.approx(1.33, abs=0.01)
    assert recomputed.saved_gib / ours.saved_gib < 0.2


@pytest.mark.parametrize("resolution", [256, 768])
@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_plan_expects_what_the_forward_pass_keeps(resolution, dropout, checkpointing, dtype):
    kept = step_work(
        resolution=resolution, dropout=dropout, checkpointing=checkpointing, dtype=dtype
    )
    planned = saved_bytes(
        resolution,
        adapter="attn",
        dropout=dropout > 0,
        checkpointing=checkpointing,
        full_precision=dtype == torch.float32,
    )
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.15, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned


@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize(
    "rules",
    [
        {"target_modules": "attn-mlp"},
        {"use_dora": True},
        {"target_modules": "attn-mlp", "use_dora": True},
    ],
)
def test_the_plan_expects_what_other_kinds_of_adapter_keep(dropout, rules):
    resolution = 256
    kept = step_work(resolution=resolution, dropout=dropout, **rules)
    kind = adapter_kind(TrainingParameters(**rules))
    planned = saved_bytes(
        resolution, adapter=kind, dropout=dropout > 0, checkpointing=False, full_precision=False
    )
    planned += saved_of_weights_bytes(kind, dropout=dropout > 0, checkpointing=False)
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.05, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned


@pytest.mark.parametrize("targets", ["attn", "attn-mlp"])
@pytest.mark.parametrize("rank", [4, 64])
def test_the_plan_expects_the_weights_that_the_adapter_has(targets, rank):
    rules = TrainingParameters(target_modules=targets, rank=rank)
    with torch.device("meta"):
        unet = random_unet("full").requires_grad_(requires_grad=False)
        weights = add_adapter(unet, rules, seed=1).buffer.numel()
    # AdamW: weight, gradient, its copy for a recorded step, and two moments.
    assert adapter_bytes(rules) == weights * 5 * 4


def test_the_plan_expects_what_a_trained_text_encoder_takes():
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(num_attention_heads=12, **shape))
        encoder.requires_grad_(requires_grad=False)
        weights = add_text_adapter(encoder, TrainingParameters(rank=1), seed=1).buffer.numel()
        saved = {}
        with _as_on_a_gpu(), _saved(encoder, saved):
            encoder(torch.zeros(1, 77, dtype=torch.int64))
    plain, trained = TrainingParameters(rank=1), TrainingParameters(rank=1, train_text_encoder=True)
    assert adapter_bytes(trained) - adapter_bytes(plain) == weights * 5 * 4
    added = needed_bytes(trained, 1, checkpointing=False) - needed_bytes(plain, 1, False)
    assert sum(saved.values()) + weights * 5 * 4 == pytest.approx(added, rel=0.02)
