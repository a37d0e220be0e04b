"""AdamW on one buffer, and the learning rate that follows its count."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler

from tests.unit.training.builders import CPU, build, command, largest_difference, weights_of
from worker.training import optimizer as optimizer_module
from worker.training import step as step_module
from worker.training.device import arithmetic_for
from worker.training.ranks import Ranks
from worker.training.step import optimizer_step

RULES = {
    "max_train_steps": 5,
    "lr_scheduler": "linear",
    "lr_warmup_steps": 2,
    "learning_rate": 1e-3,
    "max_grad_norm": 0,
}


def step(trainee, lesson):
    loss = optimizer_step(trainee, lesson)
    trainee.step += 1
    return loss


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]
)
def test_the_rate_of_each_step_is_that_of_diffusers_schedule(
    tiny_base_model, pictures, tmp_path, name
):
    warm_up = 0 if name == "constant" else 2
    rules = {**RULES, "lr_scheduler": name, "lr_warmup_steps": warm_up}
    order = command(tiny_base_model, pictures[:2], tmp_path, **rules)
    _, trainee, lesson = build(order)
    throw_away = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = get_scheduler(name, throw_away, num_warmup_steps=warm_up, num_training_steps=5)
    expected = []
    for _ in range(5):
        expected.append(schedule.get_last_lr()[0])
        throw_away.step()
        schedule.step()
        step(trainee, lesson)
    assert trainee.rates.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "warm_up", "expected"),
    [(1e-7, 2, [0, 5e-8, 1e-7, 1e-7, 1e-7]), (1e-3, 5, [0, 2e-4, 4e-4, 6e-4, 8e-4])],
)
def test_a_polynomial_that_has_nothing_to_fall_from_or_no_step_to_fall_in_does_not_fall(
    tiny_base_model, pictures, tmp_path, rate, warm_up, expected
):
    """diffusers' falls to 1e-7, the lowest rate that can be asked for, and raises in both cases."""
    rules = {"lr_scheduler": "polynomial", "learning_rate": rate, "lr_warmup_steps": warm_up}
    order = command(tiny_base_model, pictures[:1], tmp_path, **{**RULES, **rules})
    _, trainee, lesson = build(order)
    for _ in range(5):
        step(trainee, lesson)
    assert trainee.rates.tolist() == pytest.approx(expected)


def test_a_step_that_the_scaler_skips_changes_nothing_and_does_not_count_in_the_schedule(
    tiny_base_model, pictures, tmp_path, mocker
):
    """Accelerate says that it was not skipped: the fused kernel decides on the device."""
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path, **RULES))
    scaler = torch.amp.GradScaler("cpu")
    trainee.accelerator.scaler = scaler
    trainee.optimizer = AcceleratedOptimizer(trainee.optimizer.optimizer, scaler=scaler)
    step(trainee, lesson)  # the first rate of a warm-up is 0
    assert trainee.optimizer.optimizer.steps_done == 1
    start, real = weights_of(trainee), step_module.sample_losses
    mocker.patch.object(step_module, "sample_losses", lambda *args: real(*args) * torch.inf)
    step(trainee, lesson)
    assert not trainee.accelerator.optimizer_step_was_skipped
    assert trainee.optimizer.optimizer.steps_done == 1
    assert largest_difference(start, weights_of(trainee)) == 0
    mocker.stopall()
    step(trainee, lesson)
    assert trainee.optimizer.optimizer.steps_done == 2
    assert largest_difference(start, weights_of(trainee)) > 0
    # Linear, two steps of warm-up: 0, then half, and half again for the step that is done anew.
    assert trainee.rates[:3].tolist() == pytest.approx([0, 5e-4, 5e-4])


def test_no_gradient_is_kept_between_steps(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path, **RULES))
    step(trainee, lesson)
    assert trainee.adapter.buffer.grad is None


class SecondOfTwo(Ranks):
    """A process whose steps have a single micro-batch, which is the first one's."""

    def together(self):
        return nullcontext()

    def add_up(self, weights, loss):
        weights.grad = torch.full_like(weights, 65536.0)
        return loss


def test_a_process_without_a_micro_batch_makes_the_step_of_the_others_in_fp16_too(
    tiny_base_model, pictures, tmp_path, mocker
):
    """The scaler asks for a loss before anything else, and there is none to be scaled."""
    _, trainee, lesson = build(command(tiny_base_model, pictures[:1], tmp_path, max_grad_norm=1))
    scaler = torch.amp.GradScaler("cpu")

    def scaling(**settings):
        accelerator = Accelerator(**settings)
        accelerator.scaler = scaler
        return accelerator

    mocker.patch.object(optimizer_module, "Accelerator", scaling)
    trainee.accelerator = optimizer_module.new_accelerator(arithmetic_for("fp16", CPU))
    trainee.optimizer = AcceleratedOptimizer(trainee.optimizer.optimizer, scaler=scaler)
    trainee.ranks = SecondOfTwo(index=1, count=2)
    start = weights_of(trainee)
    assert step(trainee, lesson) == 0
    assert trainee.optimizer.optimizer.steps_done == 1
    assert largest_difference(start, weights_of(trainee)) > 0
