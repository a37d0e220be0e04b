"""Pictures of anything but scenes: the autoencoder has to carry styles that nobody knows yet.

Hatched and cross-hatched shapes on coloured paper, scribbles, overlapping shapes, soft colours.
"""

import colorsys
import math
import random

from PIL import Image, ImageDraw

from worker.demo.scenes import SHAPES, SIDE, Colour, draw_shape

_OVERSAMPLING = 4


def random_texture(rng: random.Random, side: int = SIDE) -> Image.Image:
    """A picture, square, RGB."""
    [draw] = rng.choices((_hatched, _scribbles, _overlapping, _soft), (5, 2, 2, 1))
    return draw(rng, side * _OVERSAMPLING).reduce(_OVERSAMPLING)


def random_colour(rng: random.Random, *, lightness: tuple[float, float] = (0.0, 1.0)) -> Colour:
    """A colour of any hue."""
    red, green, blue = colorsys.hls_to_rgb(
        rng.random(), rng.uniform(*lightness), rng.choice((rng.random(), rng.random() * 0.4))
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _hatched(rng: random.Random, large: int) -> Image.Image:
    """Shapes of hatching lines with outlines, dark on light or light on dark."""
    dark, light = (
        random_colour(rng, lightness=(0.05, 0.4)),
        random_colour(rng, lightness=(0.6, 0.97)),
    )
    ink, paper = (dark, light) if rng.random() < 0.75 else (light, dark)
    picture = Image.new("RGB", (large, large), paper)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        shape, radius = rng.choice(SHAPES), rng.uniform(0.15, 0.45) * large
        middle = (rng.uniform(0.2, 0.8) * large, rng.uniform(0.2, 0.8) * large)
        mask = Image.new("L", (large, large), 0)
        draw_shape(ImageDraw.Draw(mask), shape, middle, radius, 255)
        strokes = Image.new("L", (large, large), 0)
        angles = [rng.choice((45.0, 135.0, 0.0, 90.0, rng.uniform(0, 180)))]
        if rng.random() < 0.35:
            angles.append(angles[0] + 90)
        gap, width = rng.uniform(4, 11) * _OVERSAMPLING, rng.uniform(0.8, 2.5) * _OVERSAMPLING
        for angle in angles:
            _hatch(strokes, angle, gap, width)
        strokes.paste(0, mask=mask.point(lambda value: 255 - value))
        if rng.random() < 0.85:
            inner = Image.new("L", (large, large), 0)
            inset = rng.uniform(1, 3) * _OVERSAMPLING
            draw_shape(ImageDraw.Draw(inner), shape, middle, radius, 255, inset=inset)
            edge = mask.copy()
            edge.paste(0, mask=inner)
            strokes.paste(255, mask=edge)
        picture.paste(rng.choice((ink, ink, random_colour(rng))), mask=strokes)
    return picture


def _hatch(strokes: Image.Image, angle: float, gap: float, width: float) -> None:
    pen, large = ImageDraw.Draw(strokes), strokes.width
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for number in range(-int(large / gap), int(large / gap) + 1):
        x, y = large / 2 - dy * number * gap, large / 2 + dx * number * gap
        start, end = (x - dx * large, y - dy * large), (x + dx * large, y + dy * large)
        pen.line((start, end), fill=255, width=round(width))


def _scribbles(rng: random.Random, large: int) -> Image.Image:
    """Lines in all directions."""
    picture = Image.new("RGB", (large, large), random_colour(rng))
    pen = ImageDraw.Draw(picture)
    inks = [random_colour(rng) for _ in range(rng.randint(1, 4))]
    for _ in range(rng.randint(3, 25)):
        points = [(rng.uniform(0, large), rng.uniform(0, large)) for _ in range(rng.randint(2, 4))]
        width = round(rng.uniform(1, 5) * _OVERSAMPLING)
        pen.line(points, fill=rng.choice(inks), width=width, joint="curve")
    return picture


def _overlapping(rng: random.Random, large: int) -> Image.Image:
    """Many shapes of many colours."""
    picture = Image.new("RGB", (large, large), random_colour(rng))
    for _ in range(rng.randint(2, 10)):
        mask = Image.new("L", (large, large), 0)
        middle = (rng.uniform(0, large), rng.uniform(0, large))
        radius = rng.uniform(0.05, 0.4) * large
        draw_shape(ImageDraw.Draw(mask), rng.choice(SHAPES), middle, radius, 255)
        picture.paste(random_colour(rng), mask=mask.rotate(rng.uniform(0, 360)))
    return picture


def _soft(rng: random.Random, large: int) -> Image.Image:
    """Colours that run into each other."""
    cells = rng.randint(2, 6)
    picture = Image.new("RGB", (cells, cells))
    picture.putdata([random_colour(rng) for _ in range(cells * cells)])
    return picture.resize((large, large), Image.Resampling.BICUBIC)
