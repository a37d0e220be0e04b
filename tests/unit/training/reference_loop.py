"""diffusers' text-to-image LoRA training, written down step by step in its order.

Everything is done in every step, as its example script does: the picture is encoded by the VAE, a
latent is sampled and scaled, noise is added by diffusers' own scheduler, the caption is encoded,
and the mean squared error goes backward into AdamW. Only the random numbers are handed in.
"""

import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from worker.training.sampler import Draw


def reference_step(model, pixels, captions, draws: list[Draw], optimizer, scheduler, ddpm) -> None:
    """One step on `pixels` `[B, 3, R, R]` with their captions and random numbers."""
    posterior = model.vae.encode(pixels).latent_dist
    epsilon = torch.stack([draw.latent for draw in draws])
    latents = (posterior.mean + posterior.std * epsilon) * model.vae.config.scaling_factor
    noise = torch.stack([draw.noise for draw in draws])
    timesteps = torch.tensor([draw.timestep for draw in draws])
    noisy = ddpm.add_noise(latents, noise, timesteps)
    tokens = model.tokenizer(
        captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
    )
    hidden = model.text_encoder(tokens.input_ids, return_dict=False)[0]
    prediction = model.unet(noisy, timesteps, hidden, return_dict=False)[0]
    loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


def reference_scheduler(location: str) -> DDPMScheduler:
    """The base model's noise scheduler as diffusers loads it."""
    return DDPMScheduler.from_pretrained(location, subfolder="scheduler")
