"""Pictures drawn by a program, each with a caption that is true of it.

One shape on one background: what the drawing model learned from, and what its classifier knows.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

#: Drawn so many times larger and then reduced, so that edges are smooth.
_OVERSAMPLING = 4

#: Side of the pictures that the drawing model draws, pixels.
SIDE = 128

Colour = tuple[int, int, int]
Point = tuple[float, float]

#: Colours of shapes and backgrounds.
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 60),
    "green": (46, 150, 70),
    "blue": (40, 90, 200),
    "purple": (125, 60, 165),
    "pink": (245, 150, 190),
    "brown": (115, 70, 40),
    "black": (25, 25, 28),
    "grey": (145, 148, 152),
    "white": (248, 248, 246),
}

#: How far a channel of a colour may lie from its place in `COLOURS`.
_SHADE = 8

#: Places of a shape's middle, as shares of the side from the left and from the top.
POSITIONS: dict[str, Point] = {
    "in the centre": (0.5, 0.5),
    "at the top": (0.5, 0.26),
    "at the bottom": (0.5, 0.74),
    "on the left": (0.26, 0.5),
    "on the right": (0.74, 0.5),
    "in the top left corner": (0.26, 0.26),
    "in the top right corner": (0.74, 0.26),
    "in the bottom left corner": (0.26, 0.74),
    "in the bottom right corner": (0.74, 0.74),
}
CENTRE = "in the centre"

#: How far a middle may lie from its place, as a share of the side.
_WANDER = 0.03

#: What is kept free between a shape and the edge of the picture, as a share of the side.
_MARGIN = 0.02

#: Radii as shares of the side; `medium` is not said.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.13, 0.17),
    "medium": (0.21, 0.29),
    "large": (0.35, 0.42),
}

Fill = Literal["plain", "striped", "dotted", "outlined"]

#: Words of a fill, before and after the shape; `plain` is not said.
_FILL_WORDS: dict[str, tuple[str, str]] = {
    "plain": ("", ""),
    "striped": ("striped", ""),
    "dotted": ("dotted", ""),
    "outlined": ("", "with a dark outline"),
}


#: Shares of the side: the width of a shape's edge, where it has one, and the distances of stripes
#: and of dots.
_EDGE, _STRIPES, _DOTS = 0.02, 0.1, 0.12


def _star(radius: float) -> list[Point]:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    reach = [radius if index % 2 == 0 else 0.45 * radius for index in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(reach, angles, strict=True)]


def _cross(radius: float) -> list[Point]:
    arm, half = radius, 0.34 * radius
    return [
        *((-half, -arm), (half, -arm), (half, -half), (arm, -half)),
        *((arm, half), (half, half), (half, arm), (-half, arm)),
        *((-half, half), (-arm, half), (-arm, -half), (-half, -half)),
    ]


def _heart(radius: float) -> list[Point]:
    points = []
    for index in range(60):
        t = 2 * math.pi * index / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((radius * x / 16, -radius * (y + 2.5) / 16))
    return points


def _square(radius: float) -> list[Point]:
    half = 0.85 * radius
    return [(-half, -half), (half, -half), (half, half), (-half, half)]


def _triangle(radius: float) -> list[Point]:
    return [(0, -0.95 * radius), (radius, 0.8 * radius), (-radius, 0.8 * radius)]


def _diamond(radius: float) -> list[Point]:
    return [(0, -radius), (0.75 * radius, 0), (0, radius), (-0.75 * radius, 0)]


#: Shapes with corners: those of a shape of some radius, around its middle.
_POLYGONS: dict[str, Callable[[float], list[Point]]] = {
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
}

#: All shapes. A ring is a circle with a hole of `RING_HOLE` times its radius.
SHAPES = ("circle", "ring", *_POLYGONS)
RING_HOLE = 0.5


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        shape, colour, background, size, position: names, keys of the tables of this module.
        fill: how the shape is filled.
        x, y: of the shape's middle, as shares of the side.
        radius: as a share of the side.
        ink, paper: the shades of colour and background.
    """

    shape: str
    colour: str
    background: str
    size: str
    position: str
    fill: Fill
    x: float
    y: float
    radius: float
    ink: Colour
    paper: Colour


def random_scene(rng: random.Random, *, plain: float = 0.8) -> Scene:
    """A scene whose names are drawn from the tables.

    Args:
        rng: what draws.
        plain: share of the shapes that are filled plainly.
    """
    colour, background = rng.sample(sorted(COLOURS), 2)
    [size] = rng.choices(("small", "medium", "large"), (2, 6, 3))
    centred = size == "large" or rng.random() < 0.5
    position = CENTRE if centred else rng.choice([name for name in POSITIONS if name != CENTRE])
    others: tuple[Fill, ...] = (
        ("outlined",) if size == "small" else ("striped", "dotted", "outlined")
    )
    fill: Fill = "plain" if rng.random() < plain else rng.choice(others)
    return scene_of(
        rng.choice(SHAPES), colour, background, rng, size=size, position=position, fill=fill
    )


def scene_of(
    shape: str,
    colour: str,
    background: str,
    rng: random.Random,
    *,
    size: str = "medium",
    position: str = CENTRE,
    fill: Fill = "plain",
) -> Scene:
    """A scene of these names; `rng` draws its exact place, radius and shades."""
    radius = rng.uniform(*SIZES[size])
    x, y = (
        min(max(place + rng.uniform(-_WANDER, _WANDER), radius + _MARGIN), 1 - radius - _MARGIN)
        for place in POSITIONS[position]
    )
    return Scene(
        shape=shape,
        colour=colour,
        background=background,
        size=size,
        position=position,
        fill=fill,
        x=x,
        y=y,
        radius=radius,
        ink=_shade(rng, COLOURS[colour]),
        paper=_shade(rng, COLOURS[background]),
    )


def caption_of(scene: Scene, rng: random.Random, *, left_out: float = 0.15) -> str:
    """A caption that is true of the scene, such as "a red circle on a white background".

    Colour, background and size are each left out with the given probability, a place other than
    the centre too; the centre is seldom said, a fill that is not plain always.
    """

    def said(probability: float = 1 - left_out) -> bool:
        return rng.random() < probability

    before, after = _FILL_WORDS[scene.fill]
    words = [
        scene.size if scene.size != "medium" and said() else "",
        before,
        scene.colour if said() else "",
        scene.shape,
    ]
    what = " ".join(word for word in words if word)
    parts = [f"{_article(what)} {what}", after]
    if said():
        parts.append(f"on {_article(scene.background)} {scene.background} background")
    if said(0.3 if scene.position == CENTRE else 1 - left_out):
        parts.append(scene.position)
    return " ".join(part for part in parts if part)


def draw_scene(scene: Scene, side: int = SIDE) -> Image.Image:
    """The picture of a scene, square, RGB."""
    large = side * _OVERSAMPLING
    radius = scene.radius * large
    middle = (scene.x * large, scene.y * large)
    mask = Image.new("L", (large, large), 0)
    draw_shape(ImageDraw.Draw(mask), scene.shape, middle, radius, 255)
    picture = Image.new("RGB", (large, large), scene.paper)
    if scene.fill in ("plain", "outlined"):
        picture.paste(scene.ink, mask=mask)
    else:
        pattern = _stripes if scene.fill == "striped" else _dots
        picture = Image.composite(pattern(scene, large), picture, mask)
    if scene.fill != "plain":
        inner = Image.new("L", (large, large), 0)
        width = round(_EDGE * large)
        draw_shape(ImageDraw.Draw(inner), scene.shape, middle, radius, 255, inset=width)
        mask.paste(0, mask=inner)
        outlined = scene.fill == "outlined"
        picture.paste(_contrast(scene.ink, scene.paper) if outlined else scene.ink, mask=mask)
    return picture.reduce(_OVERSAMPLING)


def draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    middle: Point,
    radius: float,
    fill: int,
    *,
    inset: float = 0,
) -> None:
    """Fill a shape; with an `inset`, the part of it that lies about so far inside of its edge."""
    x, y = middle
    if shape in ("circle", "ring"):
        outer = radius - inset
        pen.ellipse((x - outer, y - outer, x + outer, y + outer), fill=fill)
        if shape == "ring":
            hole = RING_HOLE * radius + inset
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        corners = [(x + dx, y + dy) for dx, dy in _POLYGONS[shape](radius)]
        pen.polygon(corners, fill=fill)
        if inset:
            outline = [*corners, corners[0], corners[1]]
            pen.line(outline, fill=0, width=round(2 * inset), joint="curve")


def _stripes(scene: Scene, large: int) -> Image.Image:
    picture = Image.new("RGB", (large, large), scene.paper)
    pen = ImageDraw.Draw(picture)
    gap = round(_STRIPES * large)
    for offset in range(-large, large, gap):
        pen.line((offset, 0, offset + large, large), fill=scene.ink, width=gap * 2 // 5)
    return picture


def _dots(scene: Scene, large: int) -> Image.Image:
    picture = Image.new("RGB", (large, large), scene.ink)
    pen = ImageDraw.Draw(picture)
    gap = round(_DOTS * large)
    for row in range(large // gap + 1):
        for column in range(large // gap + 1):
            x, y, r = gap * (column + row % 2 / 2), gap * row, gap * 0.28
            pen.ellipse((x - r, y - r, x + r, y + r), fill=scene.paper)
    return picture


def _contrast(ink: Colour, paper: Colour) -> Colour:
    """An outline that can be seen: dark, or white where both are dark already."""
    dark = (25, 25, 28)
    if sum(ink) < 150 or (sum(paper) < 150 and sum(ink) < 330):
        return (248, 248, 246)
    return dark


def _shade(rng: random.Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, c + rng.randint(-_SHADE, _SHADE))) for c in colour)
    return red, green, blue


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
