"""Drawn pictures of one recognisable style, so that a demo or a test needs no photograph."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

_INKS = ("#1d3557", "#7b2d26", "#2a6f3a", "#5b3a8c", "#9c6b12")
_PAPERS = ("#f4ecd8", "#e8e4f0", "#e3efe2", "#f7e6dc")
_SHAPES = ("circle", "square", "triangle")

#: Pixels between two hatching lines.
_HATCH_GAP = 5


def draw_pictures(folder: Path, count: int, *, size: int = 96, seed: int = 0) -> list[Path]:
    """Draw `count` hatched shapes into `folder` and return their paths in order.

    Formats alternate between PNG and JPEG; no picture is smaller than `size` on a side, and some
    are half as wide or as tall again. Every second one has its caption beside it, same name with
    suffix `.txt`. Equal arguments give equal bytes.

    Args:
        folder: made if it does not exist.
        count: how many pictures.
        size: shorter side, pixels.
        seed: of shapes, colours and places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        rng = random.Random(f"{seed}:{index}")
        side = (size, size, size * 3 // 2)
        width, height = side[index % 3], side[(index // 3 + index + 1) % 3]
        shape = rng.choice(_SHAPES)
        picture = _hatched(rng, width, height, shape)
        path = folder / f"drawing_{index:03d}.{'png' if index % 2 == 0 else 'jpg'}"
        if path.suffix == ".png":
            picture.save(path)
        else:
            picture.save(path, quality=92)
        if index % 2 == 0:
            path.with_suffix(".txt").write_text(f"hatched drawing of a {shape}\n", encoding="utf-8")
        paths.append(path)
    return paths


def _hatched(rng: random.Random, width: int, height: int, shape: str) -> Image.Image:
    ink, paper = rng.choice(_INKS), rng.choice(_PAPERS)
    side = min(width, height)
    radius = rng.uniform(0.25, 0.45) * side
    x = rng.uniform(radius, width - radius)
    y = rng.uniform(radius, height - radius)
    mask = Image.new("L", (width, height), 0)
    _outline(ImageDraw.Draw(mask), shape, x, y, radius, fill=255)
    strokes = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(strokes)
    for offset in range(-height, width, _HATCH_GAP):
        pen.line((offset, 0, offset + height, height), fill=ink, width=2)
    picture = Image.composite(strokes, Image.new("RGB", (width, height), paper), mask)
    _outline(ImageDraw.Draw(picture), shape, x, y, radius, outline=ink)
    return picture


def _outline(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    radius: float,
    *,
    fill: int | None = None,
    outline: str | None = None,
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=fill, outline=outline, width=2)
    elif shape == "square":
        pen.rectangle(box, fill=fill, outline=outline, width=2)
    else:
        corners = ((x, y - radius), (x + radius, y + radius), (x - radius, y + radius))
        pen.polygon(corners, fill=fill, outline=outline, width=2)
