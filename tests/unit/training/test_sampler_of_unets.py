"""Previews and class pictures are drawn on the schedule that the training has, to its very end."""

import pytest
import torch
from diffusers import DDPMScheduler

from worker.training.families.diffusion_unet import DiffusionUnet


class Unet(DiffusionUnet):
    """Only what draws."""


@pytest.mark.parametrize("to_noise_alone", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_who_knows_the_noise_is_led_back_to_the_picture(to_noise_alone, prediction_type):
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=to_noise_alone,
        prediction_type=prediction_type,
    )
    family = Unet()
    schedule = family.schedule(scheduler, torch.device("cpu"))
    assert (schedule.signal[-1] == 0) == to_noise_alone
    sampler = family.sampler(schedule, prediction_type)
    sampler.set_timesteps(20)
    generator = torch.Generator().manual_seed(1)
    picture, latents = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for timestep in sampler.timesteps:
        at = torch.tensor([int(timestep)])
        # What a denoiser that knows the picture says of these latents.
        noise = (latents - schedule.signal[at] * picture) / schedule.sigma[at]
        said = schedule.target(prediction_type, picture, noise, at)
        latents = sampler.step(said, timestep, latents, return_dict=False)[0]
    assert torch.allclose(latents, picture, atol=0.05)
