"""Second stage: text encoder and UNet together, on the latents of scenes and their captions."""

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPTokenizer

from worker.demo.classifier import classify
from worker.demo.drawing_base import plain_prompts, sample, sheet
from worker.demo.from_scratch.architecture import scheduler, text_encoder, tokenizer, unet
from worker.demo.from_scratch.autoencoder import as_input
from worker.demo.from_scratch.captions import training_caption
from worker.demo.from_scratch.course import Course, Say, Schedule
from worker.demo.from_scratch.reader import tokens_of, train_reader
from worker.demo.scenes import Scene, draw_scene, random_scene

#: Scenes that are drawn and encoded once; those of one file.
SCENES, CHUNK = 32_000, 4_000

#: Samples of a step.
BATCH = 64

#: Timesteps in which shapes take form, and the share of samples from these alone. With more noise
#: only colours can be told, which are learned soon.
FORMING, FORMING_SHARE = (60, 640), 0.75

#: Steps between two sheets of samples, and plain prompts among them, which the classifier checks.
SHOW_EVERY, CHECKED = 1000, 24

#: Prompts that samples are drawn of on the way.
SHOWN = (
    *("a red circle on a white background", "a blue star on a yellow background"),
    *("a green triangle on a black background", "a large pink heart on a grey background"),
    *("a small black square on an orange background in the top left corner", "a purple ring"),
    *("a yellow cross on a blue background", "a brown diamond on a green background on the left"),
    *("a striped red star on a white background", "a dotted blue circle", "a white heart"),
    "a drawing of an orange triangle with a dark outline on a purple background",
)


@torch.no_grad()
def encode_scenes(vae: Any, work: Path, number: int) -> Path:
    """Draw a file of scenes and encode them as the UNet takes them; its path.

    The file has latents `[N, 8, 16, 16]` in half precision. What is there is not made again.
    """
    path = work / f"scenes_{number:02d}.safetensors"
    if not path.exists():
        scenes, latents = scenes_of(number), []
        for start in range(0, CHUNK, 50):
            drawn = [numpy.array(draw_scene(scene)) for scene in scenes[start : start + 50]]
            pictures = torch.from_numpy(numpy.stack(drawn)).permute(0, 3, 1, 2)
            with torch.autocast("cpu", torch.bfloat16):
                means = vae.encode(as_input(pictures)).latent_dist.mode()
            latents.append((means.float() * vae.config.scaling_factor).half())
        save_file({"latents": torch.cat(latents).contiguous()}, path)
    return path


def scenes_of(number: int) -> list[Scene]:
    """The scenes of a file."""
    rng = random.Random(f"scenes:{number}")
    return [random_scene(rng) for _ in range(CHUNK)]


def train_painter(vae: Any, work: Path, steps: int, say: Say) -> tuple[CLIPTokenizer, Any, Any]:
    """Train both or go on; the tokenizer and the finished text encoder and UNet."""
    numbers = range(SCENES // CHUNK)
    latents = torch.cat(
        [load_file(encode_scenes(vae, work, number))["latents"] for number in numbers]
    )
    scenes = [scene for number in numbers for scene in scenes_of(number)]
    say(
        f"{len(latents)} scenes, latents {latents.float().mean():.3f} ± {latents.float().std():.3f}"
    )
    torch.manual_seed(0)
    words = tokenizer()
    text: Any = train_reader(text_encoder(words), words, scenes, work, say)
    painter: Any = unet().to(memory_format=torch.channels_last)
    painter.set_attn_processor(AttnProcessor())  # fused attention is slow backwards on a CPU
    course = Course(
        {"unet": painter, "text": text}, Schedule(peak=1e-3, steps=steps, warmup=400),
        work / "painter.safetensors", decay=0.9995,
    )  # fmt: skip
    kept = scheduler().alphas_cumprod
    known: dict[str, list[int]] = {}

    def loss_of(step: int) -> torch.Tensor:
        rng, draws = random.Random(step), torch.Generator().manual_seed(step)
        which = torch.randint(len(latents), (BATCH,), generator=draws)
        captions = [training_caption(scenes[number], rng) for number in which.tolist()]
        clean = latents[which].float()
        noise = torch.randn(clean.shape, generator=draws)
        times = _timesteps(draws, len(kept))
        signal, sigma = (share[times, None, None, None].sqrt() for share in (kept, 1 - kept))
        noisy = signal * clean + sigma * noise
        velocity = signal * noise - sigma * clean  # arXiv:2202.00512
        with torch.autocast("cpu", torch.bfloat16):
            states = text(tokens_of(captions, words, known))[0]
            said = painter(noisy.contiguous(memory_format=torch.channels_last), times, states)
        return functional.mse_loss(said.sample.float(), velocity)

    def show() -> None:
        if course.step % SHOW_EVERY and course.step != steps:
            return
        pipeline = assemble(vae, words, course.averages["text"], course.averages["unet"])
        pipeline.set_progress_bar_config(disable=True)
        plain = plain_prompts(CHECKED, seed=1)
        pictures = sample(pipeline, [*SHOWN, *(prompt for prompt, *_ in plain)], seed=0)
        seen = [classify(picture) for picture in pictures[len(SHOWN) :]]
        right = [
            (s.shape == shape, s.colour == colour, s.background == background)
            for s, (_, shape, colour, background) in zip(seen, plain, strict=True)
        ]
        counts = [sum(column) for column in zip(*right, strict=True)]
        say(f"step {course.step}: right of {CHECKED} shapes, colours, backgrounds: {counts}")
        sheet(pictures).save(work / f"painter_{course.step:06d}.png")

    course.run(loss_of, say, show)
    return words, course.averages["text"], course.averages["unet"]


def assemble(vae: Any, words: CLIPTokenizer, text: Any, painter: Any) -> StableDiffusionPipeline:
    """The pipeline of the parts, with its scheduler."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=painter,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _timesteps(draws: torch.Generator, count: int) -> torch.Tensor:
    """Timesteps `[B]` below `count`, more of them from where shapes take form."""
    any_of_all = torch.randint(count, (BATCH,), generator=draws)
    forming = torch.randint(*FORMING, (BATCH,), generator=draws)
    return torch.where(torch.rand(BATCH, generator=draws) < FORMING_SHARE, forming, any_of_all)
