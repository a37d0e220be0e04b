"""Stable Diffusion 2.x, XL and 3 pipelines of the real classes, small and random, in seconds."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from worker.contract.base_model import Family
from worker.demo.tiny_base_model import (
    ATTENTION_GAIN,
    POSTERIOR_LOG_VARIANCE,
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

#: Widths and depths. `full` has the published sizes of 2.1, of XL base 1.0 and of 3 medium.
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
    "sd3": {
        "tiny": {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 112,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 40 + 48,
            "pos_embed_max_size": 16,
        },
        "full": {
            "sample_size": 128,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
    },
}

#: Of 3's autoencoder: 16 channels, around a mean that is not 0.
_CHANNELS, _SHIFT = 16, 0.0609

#: Pieces of words that the small T5 knows, with their log-probabilities.
_PIECES = (
    *("<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁circle", "▁blue", "▁shape"),
    *"abcdefghijklmnopqrstuvwxyz0123456789",
)


def make_family(folder: Path, family: Family, *, seed: int = 0, with_t5: bool = True) -> Path:
    """Write a random pipeline of `family` to `folder` in diffusers' layout, and return `folder`.

    As `make_base_model`, whose pipeline it is for `sd1`. `with_t5` is for `sd3`.
    """
    if family == "sd1":
        return make_base_model(folder, seed=seed)
    with seeded(seed):
        if family == "sd3":
            pipeline = _sd3(with_t5=with_t5)
        else:
            pipeline = _sd2() if family == "sd2" else _sdxl()
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def random_denoiser(
    family: Family, size: Literal["tiny", "full"]
) -> UNet2DConditionModel | SD3Transformer2DModel:
    """What of a family is trained, on torch's current device; `meta` costs nothing."""
    if family == "sd1":
        return random_unet(size)
    if family == "sd3":
        denoiser = SD3Transformer2DModel(in_channels=_CHANNELS, **_SIZES[family][size])
    else:
        denoiser = UNet2DConditionModel(**_KIND[family], **_SIZES[family][size])
    return denoiser.eval().requires_grad_(requires_grad=False)


def _sd2() -> StableDiffusionPipeline:
    tokenizer = small_tokenizer(**_OPENCLIP)
    return StableDiffusionPipeline(
        vae=random_autoencoder("tiny"),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 64, "gelu")).eval(),
        tokenizer=tokenizer,
        unet=with_gains(random_denoiser("sd2", "tiny")),
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
        unet=with_gains(random_denoiser("sdxl", "tiny")),
        scheduler=EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _sd3(*, with_t5: bool) -> StableDiffusion3Pipeline:
    first, second = small_tokenizer(), small_tokenizer(**_OPENCLIP)
    narrow = _text_config(first, 32, "quick_gelu", projection_dim=40)
    wider = _text_config(second, 64, "gelu", projection_dim=48)
    return StableDiffusion3Pipeline(
        vae=_wide_autoencoder(),
        text_encoder=CLIPTextModelWithProjection(narrow).eval(),
        text_encoder_2=CLIPTextModelWithProjection(wider).eval(),
        text_encoder_3=_t5() if with_t5 else None,
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=T5Tokenizer(vocab=[(p, -float(n)) for n, p in enumerate(_PIECES)], extra_ids=0)
        if with_t5
        else None,
        transformer=_lively(random_denoiser("sd3", "tiny")),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
    )


def _wide_autoencoder() -> AutoencoderKL:
    """The small autoencoder's sizes with 3's latents, made to have mean 0.06 and deviation 0.65."""
    small = random_autoencoder("tiny").config
    vae = AutoencoderKL.from_config(
        small,
        latent_channels=_CHANNELS,
        scaling_factor=1.5305,
        shift_factor=_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    pictures = torch.rand(16, 3, 64, 64) * 2 - 1
    last = vae.encoder.conv_out
    means = vae.encoder(pictures)[:, :_CHANNELS]
    gain = 1 / 1.5305 / means.std(dim=(0, 2, 3))
    last.weight[:_CHANNELS] *= gain[:, None, None, None]
    last.bias[:_CHANNELS] = (last.bias[:_CHANNELS] - means.mean(dim=(0, 2, 3))) * gain + _SHIFT
    last.weight[_CHANNELS:] = 0
    last.bias[_CHANNELS:] = POSTERIOR_LOG_VARIANCE
    return vae


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(_PIECES),
        d_model=112,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def _lively(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """`transformer`, whose attention and text have a say in its output."""
    for name, module in transformer.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", "add_k_proj", "add_v_proj")):
            module.weight.mul_(ATTENTION_GAIN)
    return transformer


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
