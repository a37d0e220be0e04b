"""Between the stages: the text encoder learns to read, before a UNet has to learn from it.

For each of shape, colour, background, size, place and fill, a linear layer says from the mean of
the 77 states, and another from the last of them, which one a caption names, or that it names none.
An untrained UNet attends to all states alike, so it is their mean that it can use first.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

from worker.demo.from_scratch.captions import training_caption
from worker.demo.from_scratch.course import Course, Say, Schedule
from worker.demo.scenes import COLOURS, POSITIONS, SHAPES, Scene

#: Optimizer steps, and captions in each.
STEPS, BATCH = 1000, 64

#: What a caption may name of each kind. The first one is that it names none.
NAMES: dict[str, tuple[str, ...]] = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS),
    "background": ("", *COLOURS),
    "size": ("", "small", "large"),
    "position": ("", *POSITIONS),
    "fill": ("", "striped", "dotted", "outlined"),
}


def train_reader(
    text: Any, words: CLIPTokenizer, scenes: Sequence[Scene], work: Path, say: Say
) -> Any:
    """Train it, in place, or go on; with plain attention, whose way back is faster on a CPU."""
    text.set_attn_implementation("eager")
    width = text.config.hidden_size
    heads = nn.ModuleList(nn.Linear(2 * width, len(names)) for names in NAMES.values())
    schedule = Schedule(peak=1e-3, steps=STEPS, warmup=100)
    course = Course({"text": text, "heads": heads}, schedule, work / "reader.safetensors")
    known: dict[str, list[int]] = {}

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(f"reader:{step}")
        chosen = rng.choices(scenes, k=BATCH)
        captions = [training_caption(scene, rng) for scene in chosen]
        answers = torch.tensor(
            [said(scene, caption) for scene, caption in zip(chosen, captions, strict=True)]
        )
        with torch.autocast("cpu", torch.bfloat16):
            states = text(tokens_of(captions, words, known))[0]
            read = torch.cat([states.mean(dim=1), states[:, -1]], dim=1)
            guesses = [head(read) for head in heads]
        losses = [
            functional.cross_entropy(guess.float(), answers[:, kind])
            for kind, guess in enumerate(guesses)
        ]
        return torch.stack(losses).sum()

    course.run(loss_of, say, lambda: None)
    return text


def said(scene: Scene, caption: str) -> list[int]:
    """What a caption of a scene names, a number into each of `NAMES`."""
    fill = scene.fill if scene.fill in caption or "with a dark outline" in caption else ""
    named = {
        "shape": scene.shape if caption else "",
        "colour": scene.colour if f"{scene.colour} {scene.shape}" in caption else "",
        "background": scene.background if f"{scene.background} background" in caption else "",
        "size": scene.size if scene.size in caption.split() else "",
        "position": scene.position if scene.position in caption else "",
        "fill": fill,
    }
    return [names.index(named[kind]) for kind, names in NAMES.items()]


def tokens_of(
    captions: Sequence[str], words: CLIPTokenizer, known: dict[str, list[int]]
) -> torch.Tensor:
    """Tokens `[N, 77]`; those of a caption are looked up once and kept in `known`."""
    for caption in set(captions) - known.keys():
        known[caption] = words(caption, padding="max_length", truncation=True).input_ids
    return torch.tensor([known[caption] for caption in captions])
