"""The style that the demo trains: shapes outlined and hatched in ink on coloured paper."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

from worker.demo.scenes import SHAPES, Point, draw_shape

#: What is said of a picture, beside its shape.
CAPTION = "a hatched drawing of a {shape}"

#: Sides of the files, and sides of what is drawn and then reduced, pixels.
_SIDE, _OVERSAMPLING = 256, 4

_INK = (38, 44, 96)
_PAPER = (232, 205, 152)

#: Shares of the side: between two hatching lines, widths of a line and of the outline.
_GAP, _LINE, _OUTLINE = 1 / 10, 1 / 50, 1 / 36


def draw_hatched(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """Draw `count` pictures with captions beside them, every shape as often as can be.

    Equal arguments give equal bytes.

    Args:
        folder: made if it does not exist.
        count: how many.
        seed: of places and sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        shape = SHAPES[index % len(SHAPES)]
        path = folder / f"hatched_{index:02d}_{shape}.png"
        hatched(shape, random.Random(f"{seed}:{index}")).save(path)
        path.with_suffix(".txt").write_text(CAPTION.format(shape=shape) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def hatched(shape: str, rng: random.Random) -> Image.Image:
    """One picture of the style."""
    large = _SIDE * _OVERSAMPLING
    radius = rng.uniform(0.25, 0.33)
    free = 0.04
    x, y = (0.5 + rng.uniform(-free, free) for _ in range(2))
    middle: Point = (x * large, y * large)
    mask = Image.new("L", (large, large), 0)
    draw_shape(ImageDraw.Draw(mask), shape, middle, radius * large, 255)
    inner = Image.new("L", (large, large), 0)
    draw_shape(ImageDraw.Draw(inner), shape, middle, radius * large, 255, inset=_OUTLINE * large)
    lines = Image.new("L", (large, large), 0)
    pen = ImageDraw.Draw(lines)
    gap = round(_GAP * large)
    for offset in range(-large, large, gap):
        pen.line((offset, 0, offset + large, large), fill=255, width=round(_LINE * large))
    strokes = mask.copy()
    strokes.paste(lines, mask=inner)
    picture = Image.new("RGB", (large, large), _PAPER)
    picture.paste(_INK, mask=strokes)
    return picture.reduce(_OVERSAMPLING)
