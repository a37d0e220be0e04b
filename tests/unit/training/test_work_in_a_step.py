"""Exact gates: the arithmetic, the kernels and the kept memory of one step of Stable Diffusion 1.5.

Counted on the `meta` device, so that they repeat to the last unit on any machine.
"""

import pytest
import torch

from benchmarks.counted import encoder_work, step_work
from worker.training.plan import saved_bytes

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
        dropout=dropout > 0,
        checkpointing=checkpointing,
        full_precision=dtype == torch.float32,
    )
    assert kept.saved_gib * GIB == pytest.approx(planned, rel=0.15, abs=0.03 * GIB)
    assert kept.saved_gib * GIB < 1.02 * planned
