"""Stable Diffusion XL: two text encoders side by side, pooled text, sizes beside the timestep."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from worker.contract.base_model import Family as FamilyName
from worker.training.families.block_names import original_path
from worker.training.families.diffusion_unet import DiffusionUnet
from worker.training.families.family import Prompt, Shown, TextEncoder, TextPart
from worker.training.families.memory import DenoiserMemory

#: Numbers in `time_ids`: three pairs.
_TIME_IDS = 6


class StableDiffusionXL(DiffusionUnet):
    """XL base 1.0 and what was made from it; not the refiner, which has one text encoder."""

    name: FamilyName = "sdxl"
    pipeline: Any = StableDiffusionXLPipeline
    text_parts: tuple[TextPart, ...] = (
        TextPart("tokenizer", "text_encoder", CLIPTextModel),
        TextPart("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection),
    )
    memory = DenoiserMemory(
        workspace=1.0,
        weights_a_rank={"attn": 1_451_520, "attn-mlp": 2_616_320},
        saved=0.02,
        saved_at_512={
            "attn": {"plain": 1.335, "dropout": 1.715, "checkpointing": 0.108},
            "attn-mlp": {"plain": 1.56, "dropout": 2.03, "checkpointing": 0.108},
            "dora": {"plain": 2.68, "dropout": 3.12, "checkpointing": 0.108},
            "dora-mlp": {"plain": 4.49, "dropout": 5.49, "checkpointing": 0.108},
        },
        saved_of_weights={
            "attn-mlp": {"plain": 0.08, "dropout": 0.12},
            "dora": {"plain": 4.70, "dropout": 7.01},
            "dora-mlp": {"plain": 11.21, "dropout": 18.11},
        },
        backward_at_512=0.10,
    )
    reads_unet_config = True

    def owns(self, config: Mapping[str, Any]) -> bool:
        """It asks for pooled text and time ids."""
        return config.get("addition_embed_type") == "text_time"

    def encode(self, encoders: Sequence[TextEncoder], caption: str) -> Prompt:
        """Both encoders' last hidden states but one; the last encoder's projection, pooled."""
        outputs = [
            encoder.model(encoder.tokens(caption), output_hidden_states=True)
            for encoder in encoders
        ]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Prompt(states, outputs[-1].text_embeds)

    def painter(self, vae: Any, denoiser: Any, scheduler: Any) -> Any:
        """Without a watermark."""
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=denoiser,
            scheduler=scheduler,
            add_watermarker=False,
        )

    def painter_prompts(self, prompt: Prompt, negative: Prompt) -> dict[str, torch.Tensor]:
        """Their states and pooled texts."""
        if prompt.pooled is None or negative.pooled is None:
            raise ValueError("a prompt of XL has pooled text")
        return {
            "prompt_embeds": prompt.states,
            "negative_prompt_embeds": negative.states,
            "pooled_prompt_embeds": prompt.pooled,
            "negative_pooled_prompt_embeds": negative.pooled,
        }

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """What the UNet's embedding takes in beside the embedded time ids."""
        return int(
            config["projection_class_embeddings_input_dim"]
            - _TIME_IDS * config["addition_time_embed_dim"]
        )

    def time_ids(self, shown: Shown) -> tuple[float, ...] | None:
        """Original size, corner, target size (arXiv:2307.01952, §2.2), height and top first."""
        return tuple(map(float, (*shown.original, *shown.corner, *shown.target)))

    def kohya_path(self, path: str, config: Mapping[str, Any]) -> str:
        """Kohya's trainer has the UNet as it was first released, with its names."""
        return original_path(path, layers=int(config["layers_per_block"]))

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """Base 1.0."""
        return {
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        }
