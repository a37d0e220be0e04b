"""Stable Diffusion 3: a transformer with flow matching, two CLIPs beside each other, T5 if there.

T5 may be absent, as diffusers' pipeline allows: zeros stand in its place. The model was trained
with each text encoder left out at times (arXiv:2403.03206).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from worker.contract.base_model import Family as FamilyName
from worker.training.families.family import DenoiserPart, Prompt, Shown, TextEncoder, TextPart
from worker.training.families.memory import DenoiserMemory
from worker.training.flow import FlowSchedule

#: Tokens that each CLIP and T5 take.
_CLIP_TOKENS, _T5_TOKENS = 77, 256


class StableDiffusion3:
    """3 and 3.5, medium and large, and what was made from them."""

    name: FamilyName = "sd3"
    pipeline: Any = StableDiffusion3Pipeline
    denoiser = DenoiserPart("transformer", SD3Transformer2DModel)
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    prediction_types: tuple[str, ...] = ("flow",)
    text_parts: tuple[TextPart, ...] = (
        TextPart("tokenizer", "text_encoder", CLIPTextModelWithProjection, CLIPTokenizer),
        TextPart("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection, CLIPTokenizer),
        TextPart(
            "tokenizer_3",
            "text_encoder_3",
            T5EncoderModel,
            T5Tokenizer,
            most_tokens=_T5_TOKENS,
            optional=True,
            full_precision=False,  # 4.7 billion weights
        ),
    )
    memory = DenoiserMemory(
        workspace=1.0,
        weights_a_rank={"attn": 586_752, "attn-mlp": 1_308_672},
        saved=0.02,
        saved_at_512={
            "attn": {"plain": 0.85, "dropout": 1.13, "checkpointing": 0.074},
            "attn-mlp": {"plain": 1.205, "dropout": 1.66, "checkpointing": 0.074},
            "dora": {"plain": 2.12, "dropout": 2.54, "checkpointing": 0.074},
            "dora-mlp": {"plain": 3.885, "dropout": 4.83, "checkpointing": 0.074},
        },
        saved_of_weights={
            "attn-mlp": {"plain": 0.01, "dropout": 0.01},
            "dora": {"plain": 1.67, "dropout": 3.29},
            "dora-mlp": {"plain": 8.68, "dropout": 13.6},
        },
        prompt_share=0.33,
        backward_at_512=0.10,
    )
    reads_unet_config = False
    diffusers_reads_kohya = False

    def owns(self, config: Mapping[str, Any]) -> bool:
        """A transformer that joins text and picture, with places cut out of one large table."""
        return "joint_attention_dim" in config and "pos_embed_max_size" in config

    def schedule(self, scheduler: Any, device: torch.device) -> FlowSchedule:
        """The scheduler's tables, shifted towards noise as it says."""
        return FlowSchedule(scheduler.sigmas, scheduler.timesteps, device)

    def predicts(self, scheduler: Any) -> str:
        """The way from the picture to the noise."""
        return "flow"

    def sampler(self, schedule: Any, prediction_type: str) -> FlowMatchEulerDiscreteScheduler:
        """Euler's method along the flow, with the shift that the training's table has.

        A table without shift goes down evenly, from 1 to 1 / T; `σ = s t / (1 + (s - 1) t)`.
        """
        last = float(schedule.sigma[-1].double())
        shift = last * (len(schedule) - 1) / (1 - last)
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=len(schedule), shift=round(shift, 3)
        )

    def encode(self, encoders: Sequence[TextEncoder], caption: str) -> Prompt:
        """CLIPs' last states but one side by side, then T5's; both CLIPs' projections, pooled."""
        *clips, t5 = encoders
        outputs = [clip.model(clip.tokens(caption), output_hidden_states=True) for clip in clips]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        if t5.is_absent:
            longer = torch.zeros(1, _T5_TOKENS, t5.model.width).to(states)
        else:
            longer = t5.model(t5.tokens(caption))[0].to(states)
        states = functional.pad(states, (0, longer.shape[-1] - states.shape[-1]))
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return Prompt(torch.cat([states, longer], dim=1), pooled)

    def painter(self, vae: Any, denoiser: Any, scheduler: Any) -> Any:
        """Without text encoders."""
        return StableDiffusion3Pipeline(
            vae=vae,
            transformer=denoiser,
            scheduler=scheduler,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )

    def painter_prompts(self, prompt: Prompt, negative: Prompt) -> dict[str, torch.Tensor]:
        """Their states and pooled texts."""
        if prompt.pooled is None or negative.pooled is None:
            raise ValueError("a prompt of Stable Diffusion 3 has pooled text")
        return {
            "prompt_embeds": prompt.states,
            "negative_prompt_embeds": negative.states,
            "pooled_prompt_embeds": prompt.pooled,
            "negative_pooled_prompt_embeds": negative.pooled,
        }

    def context_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """CLIP's tokens and T5's, in T5's width."""
        return _CLIP_TOKENS + _T5_TOKENS, int(config["joint_attention_dim"])

    def smallest_side(self, config: Mapping[str, Any]) -> int:
        """Four patches."""
        return 4 * int(config["patch_size"])

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """Both projections."""
        return int(config["pooled_projection_dim"])

    def fits(self, config: Mapping[str, Any], encoders: Sequence[TextEncoder]) -> bool:
        """CLIPs' projections are what it asks for, and T5 is as wide as what it attends to."""
        *clips, t5 = encoders
        pooled = sum(int(clip.model.config.projection_dim) for clip in clips)
        wide = t5.model.width if t5.is_absent else int(t5.model.config.d_model)
        return (pooled, wide) == (config["pooled_projection_dim"], config["joint_attention_dim"])

    def time_ids(self, shown: Shown) -> tuple[float, ...] | None:
        """The transformer is told σ alone."""
        return None

    def kohya_path(self, path: str, config: Mapping[str, Any]) -> str:
        """Diffusers' own, in the transformer."""
        return f"{self.denoiser.name}.{path}"

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """Version 3."""
        return {
            "ss_base_model_version": "sd3",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-3/lora",
        }
