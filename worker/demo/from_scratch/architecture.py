"""How large is the drawing model? The parts of a Stable Diffusion 1.x pipeline, untrained."""

from typing import TypeVar

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.demo.from_scratch.group_norm import with_fast_norms
from worker.demo.scenes import COLOURS, POSITIONS, SHAPES, SIDE, SIZES
from worker.demo.tiny_base_model import LATENT_SCALING, PROMPT_TOKENS, small_tokenizer

#: Side of a latent: the autoencoder reduces by 8, as that of Stable Diffusion 1.5.
LATENT_SIDE = SIDE // 8

#: Channels of a latent, twice as many as in Stable Diffusion 1.5: with an autoencoder as small as
#: this one, four lose the lines.
LATENT_CHANNELS = 8

#: Width of the text encoder, which the UNet attends to.
TEXT_WIDTH = 128

#: Last layers of residual branches, and their strength at the beginning; the UNet's own last layer
#: begins as faint.
_LAST_OF_BRANCH, _BRANCH = (".conv2", ".proj_out"), 0.1

Model = TypeVar("Model", bound=nn.Module)

#: Words of captions, and of prompts that a person may try.
WORDS = (
    *dict.fromkeys(
        (
            *SHAPES,
            *COLOURS,
            *SIZES,
            *(word for position in POSITIONS for word in position.split()),
            *("a", "an", "background", "striped", "dotted", "with", "dark", "outline"),
            *("and", "by", "of", "to", "drawing", "painting", "picture", "photo", "image", "shape"),
            *("style", "hatched", "hatching", "ink", "paper", "sketch", "watercolor", "line"),
            *("lines", "coloured", "light", "pencil", "chalk", "pattern", "texture"),
        )
    ),
)


def tokenizer() -> CLIPTokenizer:
    """A token or a few a word of `WORDS`; every other text has tokens too."""
    return small_tokenizer(words=WORDS)


def autoencoder() -> AutoencoderKL:
    """From `[B, 3, 128, 128]` to `[B, 8, 16, 16]` and back."""
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 80),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=LATENT_SCALING,
    )
    return _ready(vae)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of CLIP's text model."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config)


def unet() -> UNet2DConditionModel:
    """Convolutions at 16 x 16, convolutions and attention at 8 x 8."""
    model = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return _ready(model)


def scheduler() -> DPMSolverMultistepScheduler:
    """Scaled-linear betas as in Stable Diffusion 1.5 but more of them, and velocities predicted.

    With the betas of that model 7 % of a picture are left at the last timestep. On a plain
    background, averaged over 256 places of a latent, that says the colours (arXiv:2305.08891): the
    UNet reads them there instead of in the text, and in a sample the noise decides them. Here 0.6 %
    are left. Velocities (arXiv:2202.00512) because of errors in colour and shape under much noise,
    which hardly count where noise is predicted.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.025,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
    )


def _ready(model: Model) -> Model:
    """Let signals keep their strength through convolutions, and residual branches begin small.

    With torch's own beginning an autoencoder of this size has not found colours after 500 steps;
    with this one it has after 50.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(_LAST_OF_BRANCH) or name == "conv_out":
            module.weight.data.mul_(_BRANCH)
    with_fast_norms(model)
    return model
