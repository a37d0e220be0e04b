"""What is common to Stable Diffusion 1.x, 2.x and XL: a UNet that takes DDPM's noise away."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel

from worker.training.families.family import DenoiserPart, TextEncoder
from worker.training.objective import NoiseSchedule


class DiffusionUnet:
    """A UNet whose configuration says what it attends to."""

    denoiser = DenoiserPart("unet", UNet2DConditionModel)
    scheduler: Any = DDPMScheduler
    prediction_types: tuple[str, ...] = ("epsilon", "v_prediction")
    diffusers_reads_kohya = True

    def schedule(self, scheduler: Any, device: torch.device) -> NoiseSchedule:
        """The noise of the scheduler's betas."""
        return NoiseSchedule(scheduler.alphas_cumprod, device)

    def predicts(self, scheduler: Any) -> str:
        """Noise or velocity, as the scheduler says."""
        return str(scheduler.config.prediction_type)

    def sampler(self, schedule: Any, prediction_type: str) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ (arXiv:2211.01095) on the noise schedule of the training.

        Where that ends in noise alone (arXiv:2305.08891), the solver begins at next to nothing of
        the picture, as diffusers has it: at nothing at all it divides by zero.
        """
        kept = (schedule.signal.double().cpu() ** 2).clamp(min=2**-24)
        betas = 1 - kept / torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
        return DPMSolverMultistepScheduler(
            num_train_timesteps=len(betas),
            trained_betas=betas.tolist(),
            steps_offset=1,
            prediction_type=prediction_type,
        )

    def context_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """A prompt's tokens, and the width that cross-attention takes in."""
        return 77, int(config["cross_attention_dim"])

    def smallest_side(self, config: Mapping[str, Any]) -> int:
        """Each level but the last halves it."""
        return int(2 ** len(config["block_out_channels"]))

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """The UNet asks for no pooled text."""
        return None

    def fits(self, config: Mapping[str, Any], encoders: Sequence[TextEncoder]) -> bool:
        """The UNet attends to the encoders' states side by side, and asks for the last's pooled."""
        width = sum(int(encoder.model.config.hidden_size) for encoder in encoders)
        pooled = self.pooled_width(config)
        projected = encoders[-1].model.config.projection_dim
        return config["cross_attention_dim"] == width and pooled in (None, projected)
