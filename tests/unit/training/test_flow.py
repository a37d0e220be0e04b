"""Flow matching: the schedule is diffusers', timesteps are drawn as its script for 3 draws them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from worker.training.families.sd3 import StableDiffusion3
from worker.training.flow import FlowSchedule

CPU = torch.device("cpu")


def schedule_of(scheduler) -> FlowSchedule:
    return StableDiffusion3().schedule(scheduler, CPU)


@pytest.fixture(params=[1.0, 3.0])
def scheduler(request):
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=request.param)


def test_noise_is_added_as_diffusers_adds_it(scheduler):
    schedule = schedule_of(scheduler)
    places = torch.tensor([0, 1, 500, 999])
    latents, noise = torch.randn(2, 4, 16, 8, 8)
    expected = scheduler.scale_noise(latents, scheduler.timesteps[places], noise)
    found = schedule.add_noise(latents, noise, places)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(schedule.told(places), scheduler.timesteps[places])
    assert torch.equal(found[0], noise[0])


def test_going_against_the_target_by_sigma_leads_back_to_the_picture(scheduler):
    schedule = schedule_of(scheduler)
    places = torch.tensor([0, 300, 700, 999])
    latents, noise = torch.randn(2, 4, 16, 8, 8, dtype=torch.float64)
    target = schedule.target("flow", latents, noise, places)
    sigma = schedule.sigma[places][:, None, None, None]
    back = schedule.add_noise(latents, noise, places) - sigma * target
    assert torch.allclose(back, latents, atol=1e-6)
    assert schedule.weights("flow", places, None) is None


def test_timesteps_are_spread_as_diffusers_script_spreads_them(scheduler):
    schedule, source = schedule_of(scheduler), torch.Generator().manual_seed(0)
    ours = torch.tensor([schedule.choose(source) for _ in range(20_000)])
    places = compute_density_for_timestep_sampling(
        "logit_normal", 20_000, 0.0, 1.0, generator=torch.Generator().manual_seed(1)
    )
    theirs = (places * 1000).long()
    shares = torch.linspace(0.02, 0.98, 25)
    difference = ours.float().quantile(shares) - theirs.float().quantile(shares)
    assert difference.abs().max() < 15
    assert ours.min() >= 0
    assert ours.max() <= 999


def test_previews_are_drawn_with_the_shift_that_the_base_was_made_with(scheduler):
    sampler = StableDiffusion3().sampler(schedule_of(scheduler), "flow")
    assert sampler.config.shift == scheduler.config.shift
    assert torch.allclose(sampler.sigmas, scheduler.sigmas)
