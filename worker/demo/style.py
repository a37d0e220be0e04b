"""How near are pictures to a style? Colours and edges of pictures against those of others.

- Colours: the share of pixels in each of 6 x 6 x 6 cells of the RGB cube. A pixel is shared out
  among the eight cells around it, so that a slightly different shade is a small difference.
- Edges: the shares of pixels without an edge, and with a weak, middle and strong one in each of
  eight directions, by Sobel's gradient of the luminance.
- The distance of two tables is half the sum of their absolute differences, 0 … 1; that of two
  styles is the mean over both kinds of tables.
- Moved: 1 - distance(adapted, training) / distance(base, training).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from PIL import Image

#: What is looked at, pixels a side; other pictures are resized.
SIDE = 128

#: Cells of a channel, and directions of an edge: half a turn in as many parts.
_CELLS, _DIRECTIONS = 6, 8

#: Gradients, in levels of 256 a pixel, from which on an edge is weak, middle and strong.
_STRENGTHS = (6.0, 20.0, 50.0)

Table = NDArray[numpy.float64]


@dataclass(frozen=True)
class Style:
    """Two tables of a set of pictures; each adds up to 1."""

    colours: Table
    edges: Table


@dataclass(frozen=True)
class Moved:
    """How far pictures moved towards a style: 1 is all the way, below 0 is away.

    Attributes:
        style: of the mean of both distances. colours, edges: of each by itself.
        base, adapted: distances to the training pictures, before and after.
    """

    style: float
    colours: float
    edges: float
    base: float
    adapted: float


def style_of(pictures: Iterable[Image.Image]) -> Style:
    """The style of one or more pictures."""
    tables = [(_colours(pixels), _edges(pixels)) for pixels in map(_pixels, pictures)]
    colours, edges = zip(*tables, strict=True)
    return Style(numpy.mean(colours, axis=0), numpy.mean(edges, axis=0))


def moved(base: Style, adapted: Style, training: Style) -> Moved:
    """How far a style is on its way from the base to the training pictures."""
    before, after = _distances(base, training), _distances(adapted, training)
    colours, edges = (_way(then, now) for then, now in zip(before, after, strict=True))
    then, now = sum(before) / 2, sum(after) / 2
    return Moved(_way(then, now), colours, edges, then, now)


def _way(before: float, after: float) -> float:
    """The share of a distance that is gone; nothing of one that never was."""
    return 1 - after / before if before else 0.0


def _distances(one: Style, other: Style) -> tuple[float, float]:
    """Of colours and of edges."""
    pairs = ((one.colours, other.colours), (one.edges, other.edges))
    colours, edges = (float(numpy.abs(a - b).sum() / 2) for a, b in pairs)
    return colours, edges


def _pixels(picture: Image.Image) -> Table:
    scaled = picture.convert("RGB")
    if scaled.size != (SIDE, SIDE):
        scaled = scaled.resize((SIDE, SIDE), Image.Resampling.BOX)
    return numpy.asarray(scaled, dtype=numpy.float64)


def _colours(pixels: Table) -> Table:
    place = pixels.reshape(-1, 3) * ((_CELLS - 1) / 255)
    low = numpy.minimum(place.astype(int), _CELLS - 2)
    share = place - low
    table = numpy.zeros(_CELLS**3)
    for corner in numpy.ndindex(2, 2, 2):
        weights = numpy.where(corner, share, 1 - share).prod(axis=1)
        cells = numpy.ravel_multi_index(tuple((low + corner).T), (_CELLS,) * 3)
        table += numpy.bincount(cells, weights, minlength=_CELLS**3)
    return table / len(place)


def _edges(pixels: Table) -> Table:
    grey = pixels @ numpy.array([0.299, 0.587, 0.114])
    smooth = numpy.array([1.0, 2.0, 1.0]) / 4
    across = _along(_along(grey, smooth, 0)[:, 1:-1], numpy.array([-0.5, 0.0, 0.5]), 1)[1:-1]
    down = _along(_along(grey, smooth, 1)[1:-1], numpy.array([-0.5, 0.0, 0.5]), 0)[:, 1:-1]
    strength = numpy.digitize(numpy.hypot(across, down), _STRENGTHS)
    turn = numpy.arctan2(down, across) / numpy.pi % 1
    direction = (numpy.round(turn * _DIRECTIONS).astype(int)) % _DIRECTIONS
    cell = numpy.where(strength == 0, 0, 1 + (strength - 1) * _DIRECTIONS + direction)
    return numpy.bincount(cell.ravel(), minlength=1 + 3 * _DIRECTIONS) / cell.size


def _along(values: Table, kernel: Table, axis: int) -> Table:
    """Correlation with a kernel of three along an axis; the edges repeat."""
    padded = numpy.pad(values, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
    length = values.shape[axis]
    before, here, after = (padded.take(range(k, k + length), axis=axis) for k in range(3))
    found: Table = kernel[0] * before + kernel[1] * here + kernel[2] * after
    return found
