"""Exact gates: the arithmetic, the kernels and the kept memory of one step of Stable Diffusion 1.5.

Counted on the `meta` device, so that they repeat to the last unit on any machine.
"""

import pytest
import torch

from benchmarks.counted import encoder_work, step_work
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
    planned = FAMILIES[family].memory.saved_bytes(
        resolution**2, kind, full_precision=dtype == torch.float32
    )
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.15, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned


def test_dropout_beside_checkpointing_is_recomputed_too():
    both = step_work(dropout=0.1, checkpointing=True).saved_gib * GIB
    planned = FAMILIES["sd1"].memory.saved_bytes(512**2, "checkpointing", full_precision=False)
    assert both == pytest.approx(planned, rel=0.15)
