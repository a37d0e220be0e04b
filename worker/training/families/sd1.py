"""Stable Diffusion 1.x: one CLIP text encoder, whose last layer the UNet attends to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from worker.contract.base_model import Family as FamilyName
from worker.training.families.diffusion_unet import DiffusionUnet
from worker.training.families.family import Prompt, Shown, TextEncoder, TextPart
from worker.training.families.memory import DenoiserMemory, TextMemory


class StableDiffusion1(DiffusionUnet):
    """1.4, 1.5 and what was made from them."""

    name: FamilyName = "sd1"
    pipeline: Any = StableDiffusionPipeline
    text_parts: tuple[TextPart, ...] = (TextPart("tokenizer", "text_encoder", CLIPTextModel),)
    memory = DenoiserMemory(
        workspace=1.0,
        weights_a_rank={"attn": 199_296, "attn-mlp": 374_016},
        saved=0.01,
        saved_at_512={
            "attn": {"plain": 0.75, "dropout": 0.90, "checkpointing": 0.14},
            "attn-mlp": {"plain": 0.87, "dropout": 1.08, "checkpointing": 0.14},
            "dora": {"plain": 1.36, "dropout": 1.55, "checkpointing": 0.14},
            "dora-mlp": {"plain": 2.16, "dropout": 2.60, "checkpointing": 0.14},
        },
        saved_of_weights={
            "dora": {"plain": 0.38, "dropout": 0.66},
            "dora-mlp": {"plain": 1.17, "dropout": 2.01},
        },
        backward_at_512=0.10,
        text=TextMemory(weights_a_rank=73_728, saved=0.04),
    )
    reads_unet_config = False

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Its attention blocks are entered by convolutions, and it asks for states alone."""
        return "cross_attention_dim" in config and not (
            config.get("addition_embed_type") or config.get("use_linear_projection")
        )

    def encode(self, encoders: Sequence[TextEncoder], caption: str) -> Prompt:
        """The text encoder's last hidden states, normalised."""
        [encoder] = encoders
        return Prompt(encoder.model(encoder.tokens(caption))[0])

    def painter(self, vae: Any, denoiser: Any, scheduler: Any) -> Any:
        """Without the safety checker, which no base model has to have."""
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            unet=denoiser,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def painter_prompts(self, prompt: Prompt, negative: Prompt) -> dict[str, torch.Tensor]:
        """Their states."""
        return {"prompt_embeds": prompt.states, "negative_prompt_embeds": negative.states}

    def time_ids(self, shown: Shown) -> tuple[float, ...] | None:
        """The UNet is told the timestep alone."""
        return None

    def kohya_path(self, path: str, config: Mapping[str, Any]) -> str:
        """Kohya's trainer has diffusers' own UNet here."""
        return path

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """Version 1; kohya marks a base that predicts velocities."""
        return {
            "ss_base_model_version": "sd_v1" + ("_v" if prediction_type == "v_prediction" else ""),
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-v1/lora",
        }
