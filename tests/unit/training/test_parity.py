"""Our loop is diffusers' loop with less work: the same weights come out."""

import dataclasses

import pytest
import torch
from diffusers.optimization import get_scheduler

from tests.unit.training.builders import (
    build,
    command,
    largest_difference,
    read_usable,
    weights_of,
)
from tests.unit.training.reference_loop import (
    reference_flow_step,
    reference_scheduler,
    reference_sd3,
    reference_step,
    reference_text,
    reference_unet,
    reference_xl,
)
from worker.training.sampler import draw, step_samples
from worker.training.step import optimizer_step

#: Five steps over three pictures: the order is shuffled anew on the way.
RULES = {
    "max_train_steps": 5,
    "max_grad_norm": 0,
    "lora_dropout": 0,
    "learning_rate": 1e-3,
    "rank": 4,
    "lora_alpha": 7,
    "lr_scheduler": "cosine",
}


def ours(order, *, double=False):
    _, trainee, lesson = build(order, double=double)
    start = weights_of(trainee)
    advance(trainee, lesson)
    return start, weights_of(trainee)


def advance(trainee, lesson):
    for _ in range(lesson.plan.total_steps):
        optimizer_step(trainee, lesson)
        trainee.step += 1


def reference(order, *, double=False):
    model, trainee, lesson = build(order, double=double)
    rules, location = order.parameters, order.base_model.location
    pictures = read_usable(order, double=double)
    family = model.family.name
    unet, weights = reference_unet(location, rules, weights_of(trainee), family)
    take_step = reference_flow_step if family == "sd3" else reference_step
    optimizer = torch.optim.AdamW(
        weights.values(), lr=rules.learning_rate, weight_decay=1e-2, eps=rules.adam_epsilon
    )
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=5)
    ddpm = reference_scheduler(location, family)
    for step in range(5):
        [batch] = step_samples(lesson.plan, order.seed, step)
        draws = [
            draw(
                sample,
                seed=order.seed,
                latent_shape=lesson.dataset.buckets[0].latent_shape,
                timesteps=lesson.schedule.choose,
                flip=False,
                caption_dropout_rate=0,
            )
            for sample in batch
        ]
        chosen = [pictures[sample.picture] for sample in batch]
        pixels = torch.stack([pixels for _, pixels in chosen])
        told = told_by_the_script(model, [picture for picture, _ in chosen], rules.resolution)
        take_step(
            *(model, unet, pixels, told, draws, optimizer, scheduler, ddpm),
            noise_offset=rules.noise_offset,
            snr_gamma=rules.snr_gamma,
            prediction_type=lesson.prediction_type,
        )
    return {name: weight.detach() for name, weight in weights.items()}


def told_by_the_script(model, pictures, resolution):
    captions = [picture.file.caption for picture in pictures]
    if model.family.name == "sd3":
        return reference_sd3(model, captions)
    if model.family.name != "sdxl":
        return reference_text(model, captions)
    sizes = [(picture.width, picture.height) for picture in pictures]
    return reference_xl(model, captions, sizes, resolution)


@pytest.mark.parametrize("batch", [1, 2])
def test_five_steps_give_the_weights_of_diffusers_script(
    tiny_base_model, pictures, tmp_path, batch
):
    # Grouped products round otherwise, and AdamW's first steps turn the last bit of a gradient
    # near 0 into a whole step.
    epsilon = 1e-4
    order = command(
        tiny_base_model,
        pictures[:4],
        tmp_path,
        **RULES,
        train_batch_size=batch,
        adam_epsilon=epsilon,
    )
    start, trained = ours(order)
    assert largest_difference(start, trained) > 1e-3
    difference = largest_difference(trained, reference(order))
    assert difference < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rules", [{"snr_gamma": 0.05}, {"noise_offset": 0.1}])
def test_min_snr_and_noise_offset_give_the_weights_of_diffusers_script(
    tiny_base_model, pictures, tmp_path, prediction_type, rules
):
    order, plain = (
        command(
            tiny_base_model,
            pictures[:4],
            tmp_path,
            **RULES,
            **more,
            train_batch_size=2,
            adam_epsilon=1e-4,
            prediction_type=prediction_type,
        )
        for more in (rules, {})
    )
    expected = reference(order)
    assert largest_difference(ours(order)[1], expected) < 1e-6
    assert largest_difference(ours(plain)[1], expected) > 1e-5


def test_parity_would_notice_a_scaling_factor_applied_twice(
    tiny_base_model, pictures, tmp_path, mocker
):
    order = command(tiny_base_model, pictures[:4], tmp_path, **RULES)
    expected = reference(order)
    real = dataclasses.replace
    from worker.training import cache

    encode = cache.encode

    def twice(*args, **kwargs):
        data = encode(*args, **kwargs)
        return real(data, scaling_factor=data.scaling_factor**2)

    mocker.patch("tests.unit.training.builders.encode", twice)
    assert largest_difference(ours(order)[1], expected) > 1e-5


def test_checkpointing_on_and_off_give_equal_weights_with_dropout(
    tiny_base_model, pictures, tmp_path
):
    trained = [
        ours(
            command(
                tiny_base_model,
                pictures,
                tmp_path,
                max_train_steps=4,
                learning_rate=1e-3,
                lora_dropout=0.1,
                gradient_checkpointing=on,
            )
        )[1]
        for on in (True, False)
    ]
    assert largest_difference(*trained) == 0


def accumulated(model, pictures, folder, batch, accumulation, *, double, family="sd1"):
    """Three passes over six pictures in groups of four: every second step has two."""
    order = command(
        model,
        pictures,
        folder,
        family=family,
        num_train_epochs=3,
        max_train_steps=None,
        lora_dropout=0,
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        # In fp32 AdamW's first steps turn the last bit of a gradient near 0 into a whole step.
        adam_epsilon=1e-8 if double else 1e-4,
    )
    _, trainee, lesson = build(order, double=double)
    advance(trainee, lesson)
    return weights_of(trainee)


@pytest.mark.parametrize("double", [False, True])
def test_accumulation_of_four_equals_a_batch_of_four_ragged_end_included(
    tiny_base_model, pictures, tmp_path, double
):
    four, *others = (
        accumulated(tiny_base_model, pictures, tmp_path, batch, accumulation, double=double)
        for batch, accumulation in ((4, 1), (1, 4), (2, 2))
    )
    for other in others:
        assert largest_difference(four, other) < 1e-6
