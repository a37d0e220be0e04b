"""Prodigy, Adafactor and 8-bit AdamW: the libraries' own arithmetic, counted, saved whole."""

import importlib
import math

import pytest
import torch
from transformers import Adafactor

from tests.unit.training.builders import (
    build,
    command,
    digests,
    largest_difference,
    last_checkpoint,
    run,
    weights_of,
)
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import StoppedEvent
from worker.training import step as step_module
from worker.training.base_model import BaseModelShelf
from worker.training.evaluate import fixed_loss
from worker.training.step import optimizer_step

PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}
OPTIMIZERS = ["prodigy", "adafactor", "adamw8bit"]


def needs(optimizer):
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer])


def library(optimizer, weights, rules):
    """The library's optimizer on tensors of its own, as its documentation makes it."""
    decay = {"lr": rules.learning_rate, "weight_decay": rules.adam_weight_decay}
    if optimizer == "adafactor":
        return Adafactor(weights, scale_parameter=False, relative_step=False, **decay)
    package = importlib.import_module(PACKAGES[optimizer])
    if optimizer == "prodigy":
        advised = {"use_bias_correction": True, "safeguard_warmup": True}
        return package.Prodigy(weights, **decay, **advised)
    return package.optim.AdamW8bit(weights, **decay)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_on_the_buffer_are_those_of_the_library_on_tensors_of_its_own(
    tiny_base_model, pictures, tmp_path, optimizer
):
    needs(optimizer)
    rules = {"max_grad_norm": 0, "optimizer": optimizer, "lr_scheduler": "linear"}
    _, trainee, lesson = build(command(tiny_base_model, pictures[:3], tmp_path, **rules))
    if optimizer == "adamw8bit":  # quantised in blocks of the buffer, whatever the weights are
        own = {"all": trainee.adapter.buffer.detach().clone()}
    else:
        own = weights_of(trainee)
    expected = {name: torch.nn.Parameter(value.clone()) for name, value in own.items()}
    theirs = library(optimizer, list(expected.values()), lesson.parameters)
    taken = []

    def take_gradient(inner, *_):
        gradient = trainee.adapter.buffer.grad
        views = {"all": gradient} if "all" in own else trainee.adapter.views(gradient)
        for name, weight in expected.items():
            weight.grad = views[name].clone()
        theirs.param_groups[0]["lr"] = float(inner.param_groups[0]["lr"])
        theirs.step()
        taken.append(theirs.param_groups[0]["lr"])

    trainee.optimizer.optimizer.register_step_pre_hook(take_gradient)
    for _ in range(5):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    assert taken == pytest.approx([lesson.parameters.learning_rate * (6 - i) / 6 for i in range(5)])
    ours = {"all": trainee.adapter.buffer.detach()} if "all" in own else weights_of(trainee)
    moved = largest_difference(ours, own)
    assert moved > 0
    difference = largest_difference(ours, {name: w.detach() for name, w in expected.items()})
    assert difference <= (1e-4 * moved if optimizer == "prodigy" else 0)  # it sums in another order


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_job_stopped_at_any_step_ends_bit_identical(
    tiny_base_model, pictures, tmp_path, optimizer
):
    needs(optimizer)
    rules = {
        "optimizer": optimizer,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 5,
    }
    shelf = BaseModelShelf()
    whole, _ = run(command(tiny_base_model, pictures, tmp_path / "whole", **rules), shelf)
    assert whole.metadata["optimizer"] == optimizer
    for step in (1, 2, 4):
        order = command(tiny_base_model, pictures, tmp_path / f"stopped-{step}", **rules)
        stopped, events = run(order, shelf, stop_after=step)
        assert isinstance(stopped, StoppedEvent)
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_at_fixed_timesteps_falls(tiny_base_model, pictures, tmp_path, optimizer):
    needs(optimizer)
    rules = {"optimizer": optimizer, "max_train_steps": 60, "lora_dropout": 0}
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path, **rules))
    before = fixed_loss(trainee, lesson)
    for _ in range(60):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    assert fixed_loss(trainee, lesson) < before * 0.995


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_parts_of_the_state_are_those_that_are_expected_of_a_checkpoint(
    tiny_base_model, pictures, tmp_path, optimizer
):
    needs(optimizer)
    _, trainee, lesson = build(
        command(tiny_base_model, pictures[:2], tmp_path, optimizer=optimizer)
    )
    assert trainee.optimizer.state_dict()["state"] == {}
    for _ in range(2):
        optimizer_step(trainee, lesson)
        trainee.step += 1
        found = trainee.optimizer.state_dict()["state"]
        shapes = {i: {key: value.shape for key, value in found[i].items()} for i in found}
        assert shapes == trainee.optimizer.optimizer.state_shapes()


def test_a_step_that_the_scaler_skips_does_not_count(tiny_base_model, pictures, tmp_path, mocker):
    _, trainee, lesson = build(
        command(tiny_base_model, pictures[:2], tmp_path, optimizer="adafactor")
    )
    scaler = torch.amp.GradScaler("cpu")
    trainee.accelerator.scaler = scaler
    trainee.optimizer = type(trainee.optimizer)(trainee.optimizer.optimizer, scaler=scaler)
    start, real = weights_of(trainee), step_module.sample_losses
    mocker.patch.object(step_module, "sample_losses", lambda *args: real(*args) * torch.inf)
    optimizer_step(trainee, lesson)
    assert trainee.optimizer.optimizer.steps_done == 0
    assert largest_difference(start, weights_of(trainee)) == 0
    mocker.stopall()
    optimizer_step(trainee, lesson)
    assert trainee.optimizer.optimizer.steps_done == 1
    assert largest_difference(start, weights_of(trainee)) > 0


def test_no_gradient_is_kept_between_steps(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(
        command(tiny_base_model, pictures[:2], tmp_path, optimizer="adafactor")
    )
    optimizer_step(trainee, lesson)
    assert trainee.adapter.buffer.grad is None
    assert {weight.grad for weight in trainee.weights.values()} == {None}


def test_prodigy_finds_a_rate(tiny_base_model, pictures, tmp_path):
    needs("prodigy")
    _, trainee, lesson = build(
        command(tiny_base_model, pictures, tmp_path, optimizer="prodigy", max_train_steps=20)
    )
    for _ in range(20):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    found = trainee.optimizer.state_dict()["state"][0]["group.d"].item()
    assert 1e-6 < found < 1e-1
    assert math.isfinite(found)


@pytest.mark.parametrize("optimizer", PACKAGES)
def test_an_optimizer_whose_package_is_not_there_is_refused_by_name_before_any_work(
    tiny_base_model, pictures, tmp_path, mocker, optimizer
):
    found = importlib.import_module

    def without(name, *args):
        if name in PACKAGES.values():
            raise ImportError(name)
        return found(name, *args)

    mocker.patch("worker.training.library_optimizer.importlib.import_module", without)
    encode = mocker.patch("worker.training.job.gather")
    with pytest.raises(JobError, match=f"parameters.optimizer: {optimizer} needs") as caught:
        run(command(tiny_base_model, pictures, tmp_path, optimizer=optimizer))
    assert caught.value.code is ErrorCode.INVALID_JOB
    assert PACKAGES[optimizer] in caught.value.message
    encode.assert_not_called()
