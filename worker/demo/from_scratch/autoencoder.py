"""First stage: the autoencoder, on crops of scenes and of whatever a style may be made of."""

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.nn import functional

from worker.demo.drawing_base import sheet
from worker.demo.from_scratch.architecture import LATENT_CHANNELS, autoencoder
from worker.demo.from_scratch.course import Course, Say, Schedule
from worker.demo.from_scratch.textures import random_texture
from worker.demo.scenes import SIDE, draw_scene, random_scene
from worker.demo.tiny_base_model import LATENT_SCALING, POSTERIOR_LOG_VARIANCE

#: Pictures that are drawn once, and the share of them that are scenes.
PICTURES, SCENES = 10_000, 0.5

#: Pictures on which the latents are made white.
WHITENED = 500

#: Crops of so many pixels a side are trained on, so many in a step.
CROP, BATCH = 64, 16

#: Standard deviation of the noise on latents in training, and the weight of their mean square
#: beside the error of a channel of a pixel: a variational autoencoder whose posterior is as narrow
#: everywhere. With a learned width, channels fell silent before they had learned to say colours.
NOISE, SQUARE = 0.05, 1e-4


def draw_pool(count: int, seed: int) -> torch.Tensor:
    """Scenes and textures `[N, 3, 128, 128]`, bytes."""
    rng = random.Random(seed)
    pool = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for index in range(count):
        scene = rng.random() < SCENES
        picture = draw_scene(random_scene(rng, plain=0.5)) if scene else random_texture(rng)
        pool[index] = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)
    return pool


def as_input(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes as the model takes them: from -1 to 1, channels last."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_autoencoder(work: Path, steps: int, say: Say) -> Any:
    """Train it or go on; the finished one, its latents white, in eval mode."""
    torch.manual_seed(0)
    vae: Any = autoencoder().to(memory_format=torch.channels_last)
    schedule = Schedule(peak=2e-3, steps=steps)
    course = Course({"vae": vae}, schedule, work / "autoencoder.safetensors", decay=0.998)
    _learn(course, vae, say)
    finished = course.averages["vae"]
    whiten(finished, as_input(draw_pool(WHITENED, seed=3)))
    return finished


def _learn(course: Course, vae: Any, say: Say) -> None:
    """Run its course on crops."""
    pool, shown = draw_pool(PICTURES, seed=1), as_input(draw_pool(48, seed=2))

    def loss_of(step: int) -> torch.Tensor:
        draws = torch.Generator().manual_seed(step)
        crops = as_input(_crops(pool, draws))
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(crops).latent_dist.mode()
            noise = torch.randn(latents.shape, generator=draws) * NOISE
            decoded = vae.decode(latents + noise).sample
        loss = reconstruction_loss(decoded.float(), crops)
        loss += SQUARE * latents.float().square().mean()
        return loss

    def show() -> None:
        average: Any = course.averages["vae"]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            decoded = average.decode(average.encode(shown).latent_dist.mode()).sample.float()
        error = functional.mse_loss(decoded.clamp(-1, 1), shown).item()
        say(f"step {course.step}: {_decibels(error):.2f} dB on 48 pictures not trained on")
        pairs = torch.stack([shown, decoded], 1).flatten(0, 1)
        sheet([_as_picture(values) for values in pairs]).save(course.checkpoint.with_suffix(".png"))

    course.run(loss_of, say, show)


def reconstruction_loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error of pixels, and of differences between neighbours: edges count."""
    loss = functional.mse_loss(decoded, pictures) + functional.l1_loss(decoded, pictures)
    for dim in (2, 3):
        loss = loss + 0.5 * functional.l1_loss(decoded.diff(dim=dim), pictures.diff(dim=dim))
    return loss


@torch.no_grad()
def whiten(vae: Any, pictures: torch.Tensor) -> None:
    """Let latents of `pictures`, scaled, have mean 0, variance 1 and no correlation.

    That is a linear map of the channels, which the encoder's last convolution takes in and the
    decoder's first one takes back: what is decoded stays the same. The posterior becomes narrow
    and the same everywhere.
    """
    means = (
        vae.encode(pictures)
        .latent_dist.mean.permute(0, 2, 3, 1)
        .reshape(-1, LATENT_CHANNELS)
        .double()
    )
    centre = means.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(means.T))
    forth = vectors @ (vectors / values.sqrt()).T / LATENT_SCALING
    back = torch.linalg.inv(forth)
    quant, post, count = vae.quant_conv, vae.post_quant_conv, LATENT_CHANNELS
    weight, bias = quant.weight[:count, :, 0, 0].double(), quant.bias[:count].double()
    quant.weight[:count, :, 0, 0] = forth @ weight
    quant.bias[:count] = forth @ (bias - centre)
    quant.weight[count:] = 0
    quant.bias[count:] = POSTERIOR_LOG_VARIANCE
    weight = post.weight[:, :, 0, 0].double()
    post.bias += weight @ centre
    post.weight[:, :, 0, 0] = weight @ back


def _as_picture(values: torch.Tensor) -> Image.Image:
    """Of `[3, H, W]` from -1 to 1."""
    scaled = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).contiguous().numpy())


def _crops(pool: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    which = torch.randint(len(pool), (BATCH,), generator=draws)
    corners = torch.randint(SIDE - CROP + 1, (BATCH, 2), generator=draws).tolist()
    return torch.stack(
        [
            pool[number, :, top : top + CROP, left : left + CROP]
            for number, (top, left) in zip(which.tolist(), corners, strict=True)
        ]
    )


def _decibels(error: float) -> float:
    """Peak signal to noise of values from -1 to 1."""
    return float(10 * numpy.log10(4 / error))
