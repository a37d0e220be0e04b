"""Schedule, objective, sampler and plan: pure, and equal to their sources."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from tests.unit.training.builders import CPU, build, command
from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.training.cache import encode
from worker.training.families.sd1 import StableDiffusion1
from worker.training.images import Pictures
from worker.training.objective import NoiseSchedule, sample_losses
from worker.training.plan import make_plan
from worker.training.sampler import Sample, draw, epoch_order, step_samples


@pytest.fixture
def ddpm():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_noise_and_targets_are_those_of_diffusers_scheduler(ddpm):
    schedule = NoiseSchedule(ddpm.alphas_cumprod, CPU)
    latents, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    steps = torch.tensor([0, 1, 500, 998, 999])
    assert torch.allclose(
        schedule.add_noise(latents, noise, steps), ddpm.add_noise(latents, noise, steps), atol=1e-6
    )
    assert schedule.target("epsilon", latents, noise, steps) is noise
    assert torch.allclose(
        schedule.target("v_prediction", latents, noise, steps),
        ddpm.get_velocity(latents, noise, steps),
        atol=1e-6,
    )


def test_min_snr_weights_are_those_of_the_paper():
    # alphas_cumprod of 0.9, 0.5 and 0.1: a signal-to-noise ratio of 9, 1 and 1/9
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.1]), CPU)
    steps = torch.arange(3)
    assert schedule.weights("epsilon", steps, None) is None
    assert schedule.weights("epsilon", steps, 5.0).tolist() == pytest.approx([5 / 9, 1, 1])
    assert schedule.weights("v_prediction", steps, 5.0).tolist() == pytest.approx(
        [0.5, 0.5, (1 / 9) / (10 / 9)]
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.5, 5.0, 20.0])
def test_min_snr_weights_are_those_of_diffusers_script_at_every_timestep(
    ddpm, prediction_type, gamma
):
    steps = torch.arange(1000)
    snr = compute_snr(ddpm, steps)
    script = torch.stack([snr, gamma * torch.ones_like(steps)], dim=1).min(dim=1)[0]
    script = script / (snr if prediction_type == "epsilon" else snr + 1)
    ours = NoiseSchedule(ddpm.alphas_cumprod, CPU).weights(prediction_type, steps, gamma)
    assert torch.allclose(ours, script, rtol=1e-4)
    assert script.min() < 0.9 * script.max()


@pytest.mark.parametrize(("prediction_type", "last"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weights_are_finite_where_a_schedule_ends_in_pure_noise(prediction_type, last):
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.0]), CPU)
    assert schedule.weights(prediction_type, torch.tensor([2]), 5.0).tolist() == [last]


def test_the_loss_of_a_sample_is_its_mean_squared_error():
    losses = sample_losses(torch.ones(2, 4, 2, 2) * 3, torch.ones(2, 4, 2, 2), None)
    assert losses.tolist() == [4.0, 4.0]
    half = sample_losses(torch.ones(1, 4, 2, 2) * 3, torch.ones(1, 4, 2, 2), torch.tensor([0.5]))
    assert half.tolist() == [2.0]


def test_every_pass_shows_every_picture_once_in_another_order():
    orders = [epoch_order(7, epoch, 20) for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert epoch_order(7, 1, 20) == orders[1]
    assert epoch_order(8, 1, 20) != orders[1]


def test_the_last_group_of_a_pass_is_kept_however_short():
    plan = make_plan(
        TrainingParameters(train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2),
        7,
        memory=StableDiffusion1.memory,
        free_bytes=0,
    )
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 4)
    sizes = [[len(batch) for batch in step_samples(plan, 1, step)] for step in range(4)]
    assert sizes == [[2, 2], [2, 1], [2, 2], [2, 1]]
    shown = [s.picture for step in (0, 1) for batch in step_samples(plan, 1, step) for s in batch]
    assert sorted(shown) == list(range(7))


def test_fewer_pictures_than_a_full_group_still_make_steps():
    plan = make_plan(
        TrainingParameters(gradient_accumulation_steps=64, num_train_epochs=3),
        2,
        memory=StableDiffusion1.memory,
        free_bytes=0,
    )
    assert plan.total_steps == 3


def test_a_sample_s_numbers_depend_on_its_place_and_nothing_else():
    def numbers(step, position, picture=0):
        return draw(
            Sample(step, position, picture),
            seed=1,
            latent_shape=torch.Size((4, 8, 8)),
            timesteps=1000,
            flip=True,
            caption_dropout_rate=0.5,
        )

    assert torch.equal(numbers(3, 1).noise, numbers(3, 1, picture=9).noise)
    assert not torch.equal(numbers(3, 1).noise, numbers(3, 2).noise)
    assert not torch.equal(numbers(3, 1).noise, numbers(4, 1).noise)
    assert not torch.equal(numbers(3, 1).noise, numbers(3, 1).latent)
    many = [numbers(step, 0) for step in range(400)]
    assert 0.4 < sum(one.flipped for one in many) / 400 < 0.6
    assert 0.4 < sum(one.caption_dropped for one in many) / 400 < 0.6
    assert 400 < sum(one.timestep for one in many) / 400 < 600


@pytest.mark.parametrize(
    ("rules", "pictures", "steps", "epochs"),
    [
        ({}, 12, 1200, 100),
        ({"max_train_steps": 30}, 12, 30, 3),
        ({"max_train_steps": 5, "epochs": 1000}, 12, 5, 1),
        ({"batch_size": 4, "epochs": 2}, 10, 6, 2),
    ],
)
def test_the_plan_says_the_bill_before_the_first_step(rules, pictures, steps, epochs):
    plan = make_plan(
        TrainingParameters(**rules), pictures, memory=StableDiffusion1.memory, free_bytes=0
    )
    assert (plan.total_steps, plan.total_epochs) == (steps, epochs)
    assert plan.epoch_of(0) == 1
    assert plan.epoch_of(steps) == epochs


def test_a_batch_of_more_than_the_pictures_is_refused():
    with pytest.raises(JobError, match="train_batch_size is 4, but only 3") as caught:
        make_plan(
            TrainingParameters(train_batch_size=4), 3, memory=StableDiffusion1.memory, free_bytes=0
        )
    assert caught.value.code is ErrorCode.INVALID_JOB


def test_cached_latents_have_the_statistics_of_encoding_in_the_loop(
    tiny_base_model, pictures, tmp_path
):
    """The scaling factor is applied once, and each latent is its own picture's."""
    order = command(tiny_base_model, pictures, tmp_path)
    model, _, lesson = build(order)
    for index, (_, pixels) in enumerate(Pictures(order.images, 64, "fail")):
        with torch.no_grad():
            posterior = model.vae.encode(pixels[None]).latent_dist
        expected = posterior.mean[0] * model.vae.config.scaling_factor
        assert torch.allclose(lesson.dataset.mean_latent(index), expected, atol=1e-6)
        assert torch.allclose(lesson.dataset.buckets[0].std[index, 0], posterior.std[0], atol=1e-6)
    captions = [lesson.dataset.embeddings.states[i] for i in lesson.dataset.captions]
    assert all(not torch.equal(a, b) for i, a in enumerate(captions) for b in captions[i + 1 :]), (
        "distinct captions must have distinct embeddings"
    )


def test_a_mirrored_picture_is_a_variant_of_its_own(tiny_base_model, pictures, tmp_path):
    order = command(tiny_base_model, pictures, tmp_path)
    model, _, _ = build(order)
    read = list(Pictures(order.images[:2], 64, "fail"))
    data = encode(model, read, mirrored=True)
    with torch.no_grad():
        mirrored = model.vae.encode(read[1][1][None].flip(-1)).latent_dist.mean[0]
    assert torch.allclose(data.buckets[0].mean[1, 1], mirrored, atol=1e-6)
    assert not torch.allclose(data.buckets[0].mean[1, 0], mirrored, atol=1e-3)


def test_a_picture_that_encodes_to_nan_is_named(tiny_base_model, pictures, tmp_path):
    order = command(tiny_base_model, pictures, tmp_path)
    model, _, _ = build(order)
    read = list(Pictures(order.images, 64, "fail"))
    picture, pixels = read[2]
    pixels.fill_(torch.nan)
    with pytest.raises(JobError, match=picture.file.source) as caught:
        encode(model, read, mirrored=False)
    assert caught.value.code is ErrorCode.INVALID_IMAGE
