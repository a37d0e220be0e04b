"""Compiled blocks compute what written ones do, and are as written again after a job."""

import shutil

import pytest
import torch

from tests.unit.training.builders import build, command, largest_difference, weights_of
from worker.contract.pipe import LogEvent
from worker.training.adapter import remove_adapter
from worker.training.loop import train

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")


def trained(order, *, compiled, cache=None):
    model, trainee, lesson = build(order, compiled=compiled)
    lesson.compile_cache = cache
    said = []
    train(trainee, lesson, report=said.append, should_stop=lambda: None, checkpoint=lambda: None)
    assert [event for event in said if isinstance(event, LogEvent)] == []
    return model.unet, weights_of(trainee)


@pytest.mark.timeout(600)
def test_a_compiled_job_gives_the_weights_of_an_eager_one_and_leaves_its_kernels_in_the_cache(
    tiny_base_model, pictures, tmp_path, monkeypatch
):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    order = command(
        tiny_base_model,
        pictures[:2],
        tmp_path,
        max_train_steps=3,
        lora_dropout=0,
        adam_epsilon=1e-4,
    )
    unet, weights = trained(order, compiled=True, cache=tmp_path / "cache")
    assert any((tmp_path / "cache").rglob("*"))
    compiled = [m for m in unet.modules() if m._compiled_call_impl is not None]
    assert {type(module).__name__ for module in compiled} == {"BasicTransformerBlock"}
    assert largest_difference(weights, trained(order, compiled=False)[1]) < 1e-6
    remove_adapter(unet)
    assert [m for m in unet.modules() if m._compiled_call_impl is not None] == []
