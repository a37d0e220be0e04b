"""Whole jobs repeat, keep to themselves, learn, and go on where they stopped."""

from pathlib import Path

import pytest
import torch

from tests.unit.training.builders import build, command, digests, last_checkpoint, run
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import FinishedEvent, LogEvent, StoppedEvent
from worker.training.base_model import BaseModelShelf
from worker.training.evaluate import fixed_loss
from worker.training.step import optimizer_step

#: Accumulation, dropout, a schedule with warm-up: all that a resume must get right.
INTRICATE = {
    "max_train_steps": 6,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.1,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "learning_rate": 1e-3,
}


def test_two_runs_give_the_same_bytes(tiny_base_model, pictures, tmp_path):
    first, _ = run(command(tiny_base_model, pictures, tmp_path / "a"))
    second, _ = run(command(tiny_base_model, pictures, tmp_path / "b"))
    other, _ = run(command(tiny_base_model, pictures, tmp_path / "c", seed=8))
    assert digests(first) == digests(second) != digests(other)


def test_a_job_on_a_warm_base_gives_what_it_gives_alone(tiny_base_model, pictures, tmp_path):
    def job(name, folder, **rules):
        return command(tiny_base_model, pictures, tmp_path / folder, job_id=name, **rules)

    alone, _ = run(job("b", "alone"))
    shelf = BaseModelShelf()
    before = [
        job("a", "1", seed=1, rank=4, target_modules="attn-mlp", gradient_checkpointing=True),
        job("a", "2", seed=2, mixed_precision="bf16"),
    ]
    for earlier in before:
        run(earlier, shelf)
        warm, _ = run(job("b", f"after-{earlier.seed}"), shelf)
        assert digests(warm) == digests(alone)
    with pytest.raises(JobError):
        run(job("a", "3", target_modules=["to_nowhere"]), shelf)
    run(job("a", "4"), shelf, stop_after=2)
    assert digests(run(job("b", "last"), shelf)[0]) == digests(alone)


def test_the_loss_at_fixed_timesteps_falls_and_repeats(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(
        command(tiny_base_model, pictures, tmp_path, max_train_steps=60, learning_rate=1e-4)
    )
    before = fixed_loss(trainee, lesson)
    assert fixed_loss(trainee, lesson) == before
    assert trainee.unet.training
    for _ in range(60):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    assert fixed_loss(trainee, lesson) < before * 0.985


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_job_stopped_at_any_step_ends_bit_identical(
    tiny_base_model, pictures, tmp_path, precision
):
    rules = {**INTRICATE, "mixed_precision": precision}
    shelf = BaseModelShelf()
    whole, _ = run(command(tiny_base_model, pictures, tmp_path / "whole", **rules), shelf)
    for step in range(1, 6):
        folder = tmp_path / f"stopped-{step}"
        stopped, events = run(
            command(tiny_base_model, pictures, folder, **rules), shelf, stop_after=step
        )
        assert isinstance(stopped, StoppedEvent)
        assert stopped.step == step
        again, _ = run(
            command(
                tiny_base_model,
                pictures,
                tmp_path / f"resumed-{step}",
                resume_from=last_checkpoint(events),
                **rules,
            ),
            shelf,
        )
        assert again.metadata["resumed_at_step"] == step
        assert again.metadata["resumed_exactly"]
        assert digests(again) == digests(whole)
        assert again.loss == whole.loss


@pytest.mark.parametrize(
    "targets",
    ["attn-mlp", ["proj_in", "proj_out", "ff.net.2"], ["conv1", "conv_shortcut", "time_emb_proj"]],
)
def test_layers_outside_the_attention_train_resume_and_reload_from_both_files(
    tiny_base_model, pictures, tmp_path, targets
):
    shelf, rules = BaseModelShelf(), {**INTRICATE, "target_modules": targets, "rank": 4}
    whole, _ = run(command(tiny_base_model, pictures, tmp_path / "whole", **rules), shelf)
    _, events = run(
        command(tiny_base_model, pictures, tmp_path / "stopped", **rules), shelf, stop_after=3
    )
    left = last_checkpoint(events)
    again, _ = run(
        command(tiny_base_model, pictures, tmp_path / "on", resume_from=left, **rules), shelf
    )
    assert again.metadata["resumed_at_step"] == 3
    assert again.metadata["resumed_exactly"]
    assert len(digests(whole)) == 2
    assert digests(again) == digests(whole)


def test_a_checkpoint_of_another_job_is_not_used_and_that_is_said(
    tiny_base_model, pictures, tmp_path
):
    stopped, _ = run(command(tiny_base_model, pictures, tmp_path / "a"), stop_after=3)
    other = command(
        tiny_base_model, pictures, tmp_path / "b", rank=4, resume_from=stopped.checkpoint
    )
    ended, events = run(other)
    assert isinstance(ended, FinishedEvent)
    assert ended.metadata["resumed"] is False
    assert [e.fields for e in events if isinstance(e, LogEvent) and "not_used" in e.event] == [
        {"reason": "it was made with other pictures or parameters"}
    ]


def test_a_damaged_checkpoint_is_not_used(tiny_base_model, pictures, tmp_path):
    stopped, _ = run(command(tiny_base_model, pictures, tmp_path / "a"), stop_after=3)
    path = Path(stopped.checkpoint)
    path.write_bytes(path.read_bytes()[:1000])
    ended, _ = run(command(tiny_base_model, pictures, tmp_path / "b", resume_from=str(path)))
    alone, _ = run(command(tiny_base_model, pictures, tmp_path / "c"))
    assert ended.metadata["resumed"] is False
    assert digests(ended) == digests(alone)


def test_a_checkpoint_folder_holds_one_whole_file(tiny_base_model, pictures, tmp_path):
    order = command(tiny_base_model, pictures, tmp_path, checkpoint_seconds=1, max_train_steps=90)
    ended, events = run(order, stop_after=80)
    files = [path.name for path in Path(order.checkpoint_dir).iterdir()]
    assert files == [f"step-{ended.step:08d}.safetensors"]
    assert len([event for event in events if event.type == "checkpoint"]) >= 2


def test_clipping_clips(tiny_base_model, pictures, tmp_path):
    """diffusers' script never does: its parameter list is an exhausted iterator."""

    def norm_of_a_step(limit: float) -> float:
        _, trainee, lesson = build(
            command(tiny_base_model, pictures, tmp_path, max_grad_norm=limit)
        )
        seen: list[torch.Tensor] = []

        def look(optimizer, *_):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            seen.append(torch.stack([p.grad.norm() for p in parameters]).norm())

        trainee.optimizer.optimizer.register_step_pre_hook(look)
        optimizer_step(trainee, lesson)
        return float(seen[0])

    assert norm_of_a_step(0) > 2e-3
    assert norm_of_a_step(1e-3) == pytest.approx(1e-3, rel=1e-2)


def test_the_adapter_is_fp32_over_a_half_precision_base(tiny_base_model):
    from diffusers import UNet2DConditionModel

    from worker.contract.parameters import TrainingParameters
    from worker.training.adapter import add_adapter

    for dtype in (torch.bfloat16, torch.float16):
        unet = UNet2DConditionModel.from_pretrained(
            tiny_base_model, subfolder="unet", torch_dtype=dtype
        )
        unet.requires_grad_(requires_grad=False)
        weights = add_adapter(unet, TrainingParameters(), seed=1).weights
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert unet.conv_in.weight.dtype == dtype


def test_fp16_on_a_cpu_becomes_fp32_and_that_is_said(tiny_base_model, pictures, tmp_path):
    ended, events = run(command(tiny_base_model, pictures, tmp_path / "a", mixed_precision="fp16"))
    said = [e.fields for e in events if isinstance(e, LogEvent) and e.event == "precision_changed"]
    assert [(fields["requested"], fields["used"]) for fields in said] == [("fp16", "no")]
    assert ended.metadata["mixed_precision"] == "no"


def test_a_batch_larger_than_the_usable_pictures_is_refused_by_name(
    tiny_base_model, pictures, tmp_path
):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    order = command(
        tiny_base_model, [*pictures[:1], tmp_path / "bad.png"], tmp_path, train_batch_size=2
    )
    with pytest.raises(JobError, match="train_batch_size is 2, but only 1") as caught:
        run(order)
    assert caught.value.code is ErrorCode.INVALID_JOB


def test_out_of_gpu_memory_is_said_with_what_to_lower(tiny_base_model, pictures, tmp_path, mocker):
    mocker.patch(
        "worker.training.step.predict", side_effect=torch.OutOfMemoryError("CUDA out of memory")
    )
    with pytest.raises(JobError, match="resolution 64 with train_batch_size 1") as caught:
        run(command(tiny_base_model, pictures, tmp_path))
    assert caught.value.code is ErrorCode.GPU_OUT_OF_MEMORY
