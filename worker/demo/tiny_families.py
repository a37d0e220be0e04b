"""Stable Diffusion 2.x and XL pipelines of the real classes, small and random, made in seconds."""

from pathlib import Path
from typing import Any, Literal

from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from worker.contract.base_model import Family
from worker.demo.tiny_base_model import (
    PROMPT_TOKENS,
    make_base_model,
    random_autoencoder,
    random_unet,
    seeded,
    small_tokenizer,
    with_gains,
)

#: The noise schedule of all Stable Diffusions.
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

#: Padding of OpenCLIP's tokenizers, which CLIP's fills up with its end of text.
_OPENCLIP = {"pad_token": "!"}

#: What makes a UNet one of its family, whatever its size.
_KIND: dict[Family, dict[str, Any]] = {
    "sd2": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "use_linear_projection": True,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
    },
}

#: Widths and depths. `full` has the published sizes of 2.1 and of XL base 1.0.
_SIZES: dict[Family, dict[str, dict[str, Any]]] = {
    "sd2": {
        "tiny": {
            "sample_size": 8,
            "block_out_channels": (16, 16, 32, 32),
            "layers_per_block": 1,
            "attention_head_dim": [1, 2, 4, 4],
            "norm_num_groups": 8,
            "cross_attention_dim": 64,
        },
        "full": {
            "sample_size": 96,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
        },
    },
    "sdxl": {
        "tiny": {
            "sample_size": 8,
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 1,
            "attention_head_dim": [1, 2, 4],
            "norm_num_groups": 8,
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 32 + 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 48 + 6 * 8,
        },
        "full": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    },
}


def make_family(folder: Path, family: Family, *, seed: int = 0) -> Path:
    """Write a random pipeline of `family` to `folder` in diffusers' layout, and return `folder`.

    As `make_base_model`, whose pipeline it is for `sd1`.
    """
    if family == "sd1":
        return make_base_model(folder, seed=seed)
    with seeded(seed):
        pipeline = _sd2() if family == "sd2" else _sdxl()
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def random_family_unet(family: Family, size: Literal["tiny", "full"]) -> UNet2DConditionModel:
    """The UNet of a family by itself, on torch's current device; `meta` costs nothing."""
    if family == "sd1":
        return random_unet(size)
    unet = UNet2DConditionModel(**_KIND[family], **_SIZES[family][size]).eval()
    return unet.requires_grad_(requires_grad=False)


def _sd2() -> StableDiffusionPipeline:
    tokenizer = small_tokenizer(**_OPENCLIP)
    return StableDiffusionPipeline(
        vae=random_autoencoder("tiny"),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 64, "gelu")).eval(),
        tokenizer=tokenizer,
        unet=with_gains(random_family_unet("sd2", "tiny")),
        scheduler=DDIMScheduler(
            **_SCHEDULE,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    first, second = small_tokenizer(), small_tokenizer(**_OPENCLIP)
    wider = _text_config(second, 64, "gelu", projection_dim=48)
    return StableDiffusionXLPipeline(
        vae=random_autoencoder("tiny"),
        text_encoder=CLIPTextModel(_text_config(first, 32, "quick_gelu")).eval(),
        text_encoder_2=CLIPTextModelWithProjection(wider).eval(),
        tokenizer=first,
        tokenizer_2=second,
        unet=with_gains(random_family_unet("sdxl", "tiny")),
        scheduler=EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _text_config(
    tokenizer: CLIPTokenizer, width: int, activation: str, projection_dim: int | None = None
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection_dim or width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
