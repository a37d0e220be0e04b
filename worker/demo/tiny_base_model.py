"""A Stable Diffusion 1.x pipeline of the real classes, small and random, made in seconds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

#: Tokens of a prompt, start and end included, as in CLIP's text model.
PROMPT_TOKENS = 77

#: Factor between a latent of the autoencoder and one of unit variance, as in SD 1.5.
LATENT_SCALING = 0.18215

#: Log-variance of the latent posterior: a spread far below that of the means, as in SD 1.5.
POSTERIOR_LOG_VARIANCE = -3.0

#: Standard deviation of decoded pictures, whose values lie in [-1, 1].
PICTURE_SPREAD = 0.5

#: Gain of the UNet's attention projections and of its last convolution over torch's defaults.
#: With the defaults attention has little say in the output; with these, 60 steps of an adapter at
#: learning rate 1e-4 lower the loss by a quarter.
ATTENTION_GAIN = 2.0
OUTPUT_GAIN = 3.0

#: Words that become single tokens; all other text falls back to smaller pieces, down to bytes.
# fmt: off
_WORDS = (
    "a", "an", "and", "at", "by", "in", "of", "on", "the", "to", "with", "drawing", "painting",
    "picture", "photo", "portrait", "landscape", "style", "watercolor", "ink", "hatched",
    "sketch", "circle", "square", "triangle", "line", "lines", "red", "green", "blue", "yellow",
    "black", "white", "dark", "light", "small", "large",
)
# fmt: on


@dataclass(frozen=True)
class _Shape:
    """Widths and depths of one size of pipeline.

    Attributes:
        unet_channels: channels of the UNet's levels; every level but the last has cross attention.
        layers, heads, groups: residual layers a level, attention heads, groups of a norm.
        text_width: width of text embeddings, the UNet's cross-attention dimension.
        text_layers, text_heads: of the text encoder.
        vae_channels: channels of the autoencoder's four levels (8 x downscaling).
        vae_layers, vae_groups: residual layers a level, groups of a norm.
    """

    unet_channels: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    text_width: int
    text_layers: int
    text_heads: int
    vae_channels: tuple[int, int, int, int]
    vae_layers: int
    vae_groups: int


#: `medium` is Stable Diffusion 1.5's graph with about a fifth of its widths and a quarter of its
#: attention heads, so that each is about as wide as there; `full` has its own sizes.
_SHAPES = {
    "tiny": _Shape((32, 64), 1, 4, 8, 32, 2, 4, (8, 8, 16, 16), 1, 4),
    "medium": _Shape((64, 128, 256, 256), 2, 2, 32, 160, 12, 8, (32, 64, 128, 128), 2, 32),
    "full": _Shape((320, 640, 1280, 1280), 2, 8, 32, 768, 12, 12, (128, 256, 512, 512), 2, 32),
}

Size = Literal["tiny", "medium", "full"]


def make_base_model(folder: Path, *, seed: int = 0, size: Size = "tiny") -> Path:
    """Write a random pipeline to `folder` in diffusers' layout, safetensors, and return `folder`.

    It has the classes, the scheduler, the 8 x autoencoder and the attention layers (down, middle,
    up) of Stable Diffusion 1.5, so whatever trains or loads that model trains or loads this one.
    Equal seeds give equal bytes on one machine; the caller's random state is left as it was.

    Args:
        folder: made if it does not exist.
        seed: of all weights.
        size: `tiny` trains a step at 64 px in milliseconds on one core; the others are for
            benchmarks: 35 million weights in the UNet of `medium`, 860 million in that of `full`.
    """
    shape = _SHAPES[size]
    tokenizer = small_tokenizer()
    with seeded(seed):
        pipeline = StableDiffusionPipeline(
            vae=_autoencoder(shape),
            text_encoder=_text_encoder(shape, tokenizer),
            tokenizer=tokenizer,
            unet=_unet(shape),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def random_unet(size: Size) -> UNet2DConditionModel:
    """The UNet of a size by itself, on torch's current device; `meta` costs nothing."""
    with torch.no_grad():
        return _unet(_SHAPES[size])


def random_autoencoder(size: Size) -> AutoencoderKL:
    """The autoencoder of a size by itself, likewise."""
    with torch.no_grad():
        return _autoencoder(_SHAPES[size])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed` and records no gradient; after, it draws as before."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        yield


def small_tokenizer(words: Sequence[str] = _WORDS, **special: str) -> CLIPTokenizer:
    """A byte-level BPE over some words: any text has tokens, and different texts different ones."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
                tokens.append(left + right)
            left += right
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    # `vocab=` and `merges=`: the older `vocab_file=` is ignored in silence by transformers 5.
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=PROMPT_TOKENS,
        **special,
    )


def _text_encoder(shape: _Shape, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=2 * shape.text_width,
        projection_dim=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _unet(shape: _Shape) -> UNet2DConditionModel:
    deeper = len(shape.unet_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=shape.unet_channels,
        layers_per_block=shape.layers,
        down_block_types=("CrossAttnDownBlock2D",) * deeper + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deeper,
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
    ).eval()
    return with_gains(unet)


def with_gains(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """`unet`, whose attention has a say in its output."""
    for name, module in unet.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_out")):
            module.weight.mul_(ATTENTION_GAIN)
    unet.conv_out.weight.mul_(OUTPUT_GAIN)
    return unet


def _autoencoder(shape: _Shape) -> AutoencoderKL:
    """An autoencoder whose latents have the spread of SD 1.5's on smooth pictures.

    A random encoder's output is nearly the same for every picture. The last layers are therefore
    standardised on a few random smooth pictures: each latent channel gets mean 0 and standard
    deviation 1 / `LATENT_SCALING`, and decoded channels mean 0 and `PICTURE_SPREAD`.
    """
    vae = AutoencoderKL(
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=shape.vae_layers,
        norm_num_groups=shape.vae_groups,
        sample_size=64,
        scaling_factor=LATENT_SCALING,
    ).eval()
    coarse = torch.rand(16, 3, 5, 5) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)
    _standardise(vae.quant_conv, vae.encoder(pictures), spread=1 / LATENT_SCALING, channels=4)
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = POSTERIOR_LOG_VARIANCE
    latents = vae.encode(pictures).latent_dist.mode()
    features: list[torch.Tensor] = []
    hook = vae.decoder.conv_act.register_forward_hook(lambda _m, _i, out: features.append(out))
    vae.decode(latents)
    hook.remove()
    _standardise(vae.decoder.conv_out, features[0], spread=PICTURE_SPREAD, channels=3)
    return vae


def _standardise(
    convolution: torch.nn.Conv2d, inputs: torch.Tensor, *, spread: float, channels: int
) -> None:
    """Give the first `channels` outputs mean 0 and standard deviation `spread` on `inputs`."""
    outputs = convolution(inputs)[:, :channels]
    gain = spread / outputs.std(dim=(0, 2, 3))
    if convolution.bias is None:
        raise ValueError("a convolution without a bias cannot be centred")
    centred = convolution.bias[:channels] - outputs.mean(dim=(0, 2, 3))
    convolution.weight[:channels] *= gain[:, None, None, None]
    convolution.bias[:channels] = centred * gain


def _scheduler() -> PNDMScheduler:
    """SD 1.5's own: scaled-linear betas, noise predicted."""
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type="epsilon",
    )
