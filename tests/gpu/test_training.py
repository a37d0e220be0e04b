"""The trainer on a real GPU: precisions, launches, memory, resume, exports."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.unit.training.builders import command, digests, last_checkpoint, read_usable
from worker.contract.pipe import FinishedEvent, LogEvent, StageEvent
from worker.training import loop
from worker.training import step as step_module
from worker.training.adapter import add_adapter
from worker.training.base_model import BaseModelShelf
from worker.training.cache import encode
from worker.training.device import arithmetic_for, compute_repeatably, free_memory_bytes
from worker.training.families.sd1 import StableDiffusion1
from worker.training.job import run_job
from worker.training.launch import prepare_launch
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.plan import make_plan
from worker.training.recording import RecordedPass
from worker.training.sampler import Sample
from worker.training.step import Lesson, Trainee, drawn, optimizer_step, run_pass

GIB = 2**30


def job(order, device, shelf=None, stop_after=None):
    """Run a whole job; stops with a drain once `stop_after` steps were asked for."""
    events, asked = [], [0]

    def should_stop():
        asked[0] += 1
        return "drain" if stop_after is not None and asked[0] > stop_after + 1 else None

    ended = run_job(
        order, shelf or BaseModelShelf(), device, report=events.append, should_stop=should_stop
    )
    return ended, events


def prepared(order, device, precision="bf16"):
    """Model, trainee and lesson, as a job has them before its first step."""
    rules = order.parameters
    model = BaseModelShelf().get(order.base_model, arithmetic_for(precision, device))
    pictures = read_usable(order)
    plan = make_plan(
        rules,
        len(pictures),
        memory=model.family.memory,
        free_bytes=free_memory_bytes(device),
        launch="eager",
    )
    lesson = Lesson(
        dataset=encode(model, pictures, mirrored=False),
        schedule=model.schedule,
        prediction_type=model.prediction_type,
        parameters=rules,
        plan=plan,
        seed=order.seed,
    )
    accelerator = new_accelerator(model.arithmetic)
    adapter = add_adapter(model.unet, rules, order.seed)
    optimizer = new_optimizer(accelerator, adapter, rules)
    return Trainee(
        unet=model.unet.train(),
        adapter=adapter,
        accelerator=accelerator,
        optimizer=optimizer,
        schedule=new_schedule(optimizer, rules, plan.total_steps),
        losses=torch.full((plan.total_steps,), torch.nan, device=device),
    ), lesson


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("launch", ["eager", "graph", "compile"])
def test_a_job_trains_and_its_exports_are_verified(
    tiny_base_model, pictures, tmp_path, gpu, precision, launch
):
    order = command(
        tiny_base_model,
        pictures,
        tmp_path,
        mixed_precision=precision,
        max_train_steps=40,
        learning_rate=1e-3,
    )
    ended, events = job(order.model_copy(update={"launch": launch}), gpu)
    assert isinstance(ended, FinishedEvent)
    assert [e for e in events if isinstance(e, LogEvent) and e.event == "steps_stay_eager"] == []
    before, after = (ended.metadata[f"evaluation_loss_{when}"] for when in ("before", "after"))
    assert after < before


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_a_job_of_a_newer_family_trains_and_its_exports_are_verified(
    tiny_families, pictures, tmp_path, gpu, family, launch
):
    order = command(
        tiny_families[family],
        pictures,
        tmp_path,
        family=family,
        mixed_precision="fp16",
        max_train_steps=40,
        learning_rate=1e-3,
    )
    ended, events = job(order.model_copy(update={"launch": launch}), gpu)
    assert isinstance(ended, FinishedEvent)
    assert [e for e in events if isinstance(e, LogEvent) and e.event == "steps_stay_eager"] == []
    before, after = (ended.metadata[f"evaluation_loss_{when}"] for when in ("before", "after"))
    assert after < before


def test_an_fp16_step_that_overflows_is_skipped_and_the_schedule_waits(
    tiny_base_model, pictures, tmp_path, gpu, mocker
):
    rules = {"lr_scheduler": "linear", "lr_warmup_steps": 4, "mixed_precision": "fp16"}
    trainee, lesson = prepared(command(tiny_base_model, pictures, tmp_path, **rules), gpu, "fp16")
    assert trainee.accelerator.scaler is not None
    optimizer_step(trainee, lesson)
    done = float(trainee.optimizer.optimizer.steps_done)
    start = trainee.adapter.buffer.detach().clone()
    real = step_module.sample_losses
    mocker.patch.object(step_module, "sample_losses", lambda *args: real(*args) * torch.inf)
    trainee.step = 1
    optimizer_step(trainee, lesson)
    assert float(trainee.optimizer.optimizer.steps_done) == done
    assert torch.equal(trainee.adapter.buffer, start)


@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_recorded_pass_gives_the_gradient_of_one_that_is_not(
    tiny_base_model, pictures, tmp_path, gpu, dropout, precision
):
    order = command(
        tiny_base_model, pictures, tmp_path, lora_dropout=dropout, mixed_precision=precision
    )
    trainee, lesson = prepared(order, gpu, precision)
    share = torch.full((), 0.5, device=gpu)

    def run(batch, weight):
        return run_pass(trainee, lesson, batch, weight)

    first = drawn(lesson, [Sample(0, 0, 0)]).to(gpu)
    recorded = RecordedPass(run, first, trainee.adapter.buffer, 0.5)
    for step in range(3):
        batch = drawn(lesson, [Sample(step, 0, step)]).to(gpu)
        found = []
        for way in (run, recorded):
            torch.manual_seed(step)
            loss = way(batch, share)
            found.append((loss, trainee.adapter.buffer.grad))
            trainee.adapter.buffer.grad = None
        (loss, gradient), (replayed_loss, replayed) = found
        assert replayed_loss == pytest.approx(loss.item(), rel=1e-3)
        assert (replayed - gradient).abs().max() <= 1e-3 * gradient.abs().max()


def test_a_pass_is_recorded_after_steps_that_were_not(tiny_base_model, pictures, tmp_path, gpu):
    trainee, lesson = prepared(command(tiny_base_model, pictures, tmp_path), gpu)
    lesson.plan = dataclasses.replace(lesson.plan, recorded=True)
    optimizer_step(trainee, lesson)
    said = []
    prepare_launch(trainee, lesson, said.append)
    assert said == []
    assert trainee.recorded is not None


@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_a_stopped_job_ends_as_one_that_ran_through(
    tiny_base_model, pictures, tmp_path, gpu, launch
):
    def order(name, **more):
        made = command(tiny_base_model, pictures, tmp_path / name, mixed_precision="fp16", **more)
        return made.model_copy(update={"launch": launch})

    whole, _ = job(order("whole"), gpu)
    _, events = job(order("stopped"), gpu, stop_after=3)
    resumed, _ = job(order("resumed", resume_from=last_checkpoint(events)), gpu)
    assert resumed.metadata["resumed_exactly"]
    assert digests(resumed) == digests(whole)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_gradient_of_a_full_size_pass_repeats_bit_for_bit(
    full_base_model, pictures, tmp_path, gpu, precision
):
    """In sizes at which attention's kernels split their work."""
    compute_repeatably()
    order = command(
        full_base_model, pictures[:2], tmp_path, resolution=512, mixed_precision=precision
    )
    trainee, lesson = prepared(order, gpu, precision)
    batch, share = drawn(lesson, [Sample(0, 0, 0)]).to(gpu), torch.ones((), device=gpu)
    gradients = []
    for _ in range(5):
        torch.manual_seed(0)
        run_pass(trainee, lesson, batch, share)  # raises where it cannot be had
        gradients.append(trainee.adapter.buffer.grad)
        trainee.adapter.buffer.grad = None
    assert gradients[0].any()
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_no_step_waits_for_the_device(tiny_base_model, pictures, tmp_path, gpu):
    trainee, lesson = prepared(command(tiny_base_model, pictures, tmp_path), gpu)
    optimizer_step(trainee, lesson)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainee.step = 1
        optimizer_step(trainee, lesson)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_real_ladder_ends_with_a_trained_adapter(full_base_model, pictures, tmp_path, gpu):
    """A share of the GPU in which the planned micro-batch does not fit, though it says so."""
    rules = {"resolution": 512, "mixed_precision": "bf16", "train_batch_size": 6}
    order = command(full_base_model, pictures, tmp_path, max_train_steps=2, **rules)
    trainee, lesson = prepared(order, gpu)
    lesson.plan = dataclasses.replace(lesson.plan, micro_batch=6)
    total = torch.cuda.get_device_properties(gpu).total_memory
    used = torch.cuda.memory_allocated(gpu)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((used + 4 * GIB) / total, gpu)
    said = []
    try:
        loop.train(
            trainee,
            lesson,
            report=said.append,
            should_stop=lambda: None,
            checkpoint=lambda: None,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert trainee.step == 2
    assert [e for e in said if isinstance(e, LogEvent) and e.event == "plan_made_smaller"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_measured_peak_is_within_the_plan(
    full_base_model, pictures, tmp_path, gpu, batch, checkpointing
):
    rules = {"resolution": 512, "mixed_precision": "bf16", "train_batch_size": batch}
    order = command(
        full_base_model, pictures, tmp_path, gradient_checkpointing=checkpointing, **rules
    )
    trainee, lesson = prepared(order, gpu)
    if checkpointing:
        trainee.unet.enable_gradient_checkpointing()
    base = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    for _ in range(2):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    peak = torch.cuda.max_memory_allocated(gpu) - base
    memory = StableDiffusion1.memory
    rules = lesson.parameters
    saved = batch * memory.saved_bytes(rules, checkpointing=checkpointing)
    assert 0.8 * saved < peak < lesson.plan.estimated_bytes


def test_a_full_size_job_ends_with_both_exports(full_base_model, pictures, tmp_path, gpu):
    order = command(
        full_base_model,
        pictures,
        tmp_path,
        resolution=512,
        mixed_precision="fp16",
        max_train_steps=120,
    )
    ended, events = job(order, gpu)
    assert ended.metadata["plan"]["recorded"]
    assert [e for e in events if isinstance(e, LogEvent) and e.event == "steps_stay_eager"] == []
    assert {Path(file.path).suffix for file in ended.files} >= {".safetensors", ".json"}
    assert [e for e in events if isinstance(e, StageEvent) and e.memory.peak > 0]
