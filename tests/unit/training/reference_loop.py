"""diffusers' text-to-image LoRA training, written down step by step in its order.

Everything is done in every step, as its example scripts do: the picture is encoded by the VAE, a
latent is sampled and scaled, noise is added by diffusers' own scheduler, the caption is encoded,
and the mean squared error goes backward into AdamW. Only the random numbers are handed in.
`reference_text` is of the script for Stable Diffusion 1.x and 2.x, `reference_xl` of that for XL;
`reference_flow_step` and `reference_sd3` are of that for 3 (DreamBooth), without preconditioning.
"""

from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch.nn import functional

from worker.training.sampler import Draw


def reference_unet(location: str, rules, weights: dict[str, torch.Tensor], family="sd1"):
    """A denoiser in PEFT's own arithmetic and memory format; its adapter begins with `weights`."""
    if family == "sd3":
        unet = SD3Transformer2DModel.from_pretrained(location, subfolder="transformer")
    else:
        unet = UNet2DConditionModel.from_pretrained(location, subfolder="unet")
    unet.requires_grad_(requires_grad=False)
    unet.add_adapter(
        LoraConfig(
            r=rules.rank,
            lora_alpha=rules.lora_alpha,
            lora_dropout=rules.lora_dropout,
            target_modules=list(rules.target_modules),
        )
    )
    unet.to(next(iter(weights.values())).dtype)
    adapter = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    assert adapter.keys() == weights.keys()
    with torch.no_grad():
        for name, weight in adapter.items():
            weight.copy_(weights[name])
    return unet.train(), adapter


def reference_step(
    model,
    unet,
    pixels,
    told: dict[str, Any],
    draws: list[Draw],
    optimizer,
    scheduler,
    ddpm,
    backward=torch.Tensor.backward,
    *,
    noise_offset=0.0,
    snr_gamma=None,
    prediction_type="epsilon",
    prior_loss_weight=None,
) -> torch.Tensor:
    """One step on `pixels` `[B, 3, R, R]` with random numbers and what else the UNet is told.

    With a `prior_loss_weight`, the second half of the batch is of the class, as in the script for
    DreamBooth.
    """
    device = pixels.device
    posterior = model.vae.encode(pixels).latent_dist
    epsilon = torch.stack([draw.latent for draw in draws]).to(posterior.mean)
    latents = (posterior.mean + posterior.std * epsilon) * model.vae.config.scaling_factor
    noise = torch.stack([draw.noise for draw in draws]).to(latents)
    noise += noise_offset * torch.stack([draw.offset for draw in draws]).to(latents)
    timesteps = torch.tensor([draw.timestep for draw in draws], device=device)
    noisy = ddpm.add_noise(latents, noise, timesteps)
    velocity = prediction_type == "v_prediction"
    target = ddpm.get_velocity(latents, noise, timesteps) if velocity else noise
    prediction = unet(noisy, timesteps, return_dict=False, **told)[0]
    if prior_loss_weight is not None:
        prediction, prediction_of_class = torch.chunk(prediction, 2, dim=0)
        target, target_of_class = torch.chunk(target, 2, dim=0)
        loss = functional.mse_loss(prediction.float(), target.float(), reduction="mean")
        prior_loss = functional.mse_loss(
            prediction_of_class.float(), target_of_class.float(), reduction="mean"
        )
        loss = loss + prior_loss_weight * prior_loss
    elif snr_gamma is None:
        loss = functional.mse_loss(prediction.float(), target.float(), reduction="mean")
    else:
        snr = compute_snr(ddpm, timesteps)
        weights = torch.stack([snr, snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        weights = weights / (snr + 1 if velocity else snr)
        losses = functional.mse_loss(prediction.float(), target.float(), reduction="none")
        loss = (losses.mean(dim=list(range(1, len(losses.shape)))) * weights).mean()
    backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()


def reference_flow_step(
    *arguments, backward=torch.Tensor.backward, noise_offset=0.0, **_for_ddpm
) -> torch.Tensor:
    """The same step with flow matching; its scheduler is a `FlowMatchEulerDiscreteScheduler`."""
    model, transformer, pixels, told, draws, optimizer, scheduler, flow = arguments
    posterior = model.vae.encode(pixels).latent_dist
    epsilon = torch.stack([draw.latent for draw in draws]).to(posterior.mean)
    latents = posterior.mean + posterior.std * epsilon
    latents = (latents - model.vae.config.shift_factor) * model.vae.config.scaling_factor
    noise = torch.stack([draw.noise for draw in draws]).to(latents)
    noise += noise_offset * torch.stack([draw.offset for draw in draws]).to(latents)
    timesteps = flow.timesteps[torch.tensor([draw.timestep for draw in draws])]
    places = [(flow.timesteps == timestep).nonzero().item() for timestep in timesteps]
    sigmas = flow.sigmas[places].to(latents)[:, None, None, None]
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    prediction = transformer(
        hidden_states=noisy, timestep=timesteps.to(latents), return_dict=False, **told
    )[0]
    target = noise - latents
    loss = torch.mean(
        (torch.ones_like(sigmas) * (prediction.float() - target.float()) ** 2).reshape(
            target.shape[0], -1
        ),
        1,
    ).mean()
    backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.detach()


def reference_sd3(model, captions: list[str]) -> dict[str, Any]:
    """Both CLIPs' states and projections, and T5's states behind them."""
    *clips, t5 = model.text_encoders
    outputs = [clip.model(_tokens(clip, captions), output_hidden_states=True) for clip in clips]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    tokens = t5.tokenizer(
        captions, max_length=256, padding="max_length", truncation=True, return_tensors="pt"
    )
    longer = t5.model(tokens.input_ids)[0]
    states = functional.pad(states, (0, longer.shape[-1] - states.shape[-1]))
    return {
        "encoder_hidden_states": torch.cat([states, longer], dim=-2),
        "pooled_projections": torch.cat([output[0] for output in outputs], dim=-1),
    }


def reference_text(model, captions: list[str]) -> dict[str, Any]:
    """The captions in the last hidden states of the one text encoder."""
    [encoder] = model.text_encoders
    return {"encoder_hidden_states": encoder.model(_tokens(encoder, captions))[0]}


def reference_xl(
    model, captions: list[str], sizes: list[tuple[int, int]], resolution: int
) -> dict[str, Any]:
    """Both encoders' last states but one, the pooled projection, and each picture's sizes.

    Each of `sizes` is a picture's width and height. Its smaller side is made `resolution` long and
    the middle is cut out; original size, corner and target size, height and top first.
    """
    outputs = [
        encoder.model(_tokens(encoder, captions), output_hidden_states=True)
        for encoder in model.text_encoders
    ]
    ids = []
    for width, height in sizes:
        if width < height:
            shown_height, shown_width = int(resolution * height / width), resolution
        else:
            shown_height, shown_width = resolution, int(resolution * width / height)
        top = max(0, round((shown_height - resolution) / 2.0))
        left = max(0, round((shown_width - resolution) / 2.0))
        ids.append([height, width, top, left, resolution, resolution])
    states = torch.concat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = outputs[-1][0]
    return {
        "encoder_hidden_states": states,
        "added_cond_kwargs": {
            "time_ids": torch.tensor(ids).to(states),
            "text_embeds": pooled,
        },
    }


def _tokens(encoder, captions: list[str]) -> torch.Tensor:
    tokens = encoder.tokenizer(
        captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
    )
    return tokens.input_ids.to(encoder.model.device)


def reference_scheduler(location: str, family: str = "sd1") -> Any:
    """The base model's noise scheduler as diffusers loads it."""
    kind = FlowMatchEulerDiscreteScheduler if family == "sd3" else DDPMScheduler
    return kind.from_pretrained(location, subfolder="scheduler")
