"""What does a picture show? Plain image analysis of pictures of one shape on one background.

It finds filled, patterned, outlined and hatched shapes: what is not joined to the picture's edge by
the background's colour belongs to the shape. Which shape that is says the best overlap with a
silhouette of each. Nothing is learned.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from worker.demo.scenes import COLOURS, POSITIONS, SHAPES, SIZES, draw_shape

#: What is looked at, pixels a side; larger and smaller pictures are resized.
SIDE = 128

#: Width of the edge whose middle colour is the background's, pixels.
_FRAME = 4

#: From such a share of the largest difference to the background on a pixel is ink: an edge lies
#: half way, however soft it is. Up to the other share it has the background's colour.
_INK, _PAPER = 0.5, 0.3

#: A picture whose pixels all differ from the background by less shows nothing; 0 … 442.
_NOTHING = 30.0

#: Gaps between lines up to twice as wide, in pixels, are closed.
_CLOSING = 2

#: Smallest hole of a ring, as a share of the whole; that of a drawn ring is a quarter.
_HOLE = 0.1

#: Silhouettes are compared at so many pixels a side.
_GRID = 32

#: Smallest overlap (intersection over union) with a shape's silhouette to be called that.
_OVERLAP = 0.7

Mask = NDArray[numpy.bool_]
Values = NDArray[numpy.float64]


@dataclass(frozen=True)
class Seen:
    """What a picture shows, in the words of `worker.demo.scenes`.

    Attributes:
        shape: none if nothing is there, or nothing that is like one of the shapes.
        overlap: of the silhouette with that of the likeliest shape, 0 … 1.
        colour, background, size, position: names; colour, size and position are none if nothing
            is there.
    """

    shape: str | None
    overlap: float
    colour: str | None
    background: str
    size: str | None
    position: str | None


def classify(picture: Image.Image) -> Seen:
    """Look at a picture of one shape on one background."""
    scaled = picture.convert("RGB")
    if scaled.size != (SIDE, SIDE):
        scaled = scaled.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = numpy.asarray(scaled, dtype=numpy.float64)
    frame = numpy.ones((SIDE, SIDE), dtype=bool)
    frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    paper = numpy.median(pixels[frame], axis=0)
    background = colour_name(paper)
    difference = numpy.linalg.norm(pixels - paper, axis=-1)
    strongest = float(numpy.percentile(difference, 99))
    nothing = Seen(None, 0.0, None, background, None, None)
    if strongest < _NOTHING:
        return nothing
    ink = _opened(difference > _INK * strongest)
    paper_like = difference < _PAPER * strongest
    whole, hole = _silhouette(ink, paper_like)
    if whole.sum() < _GRID or _box(whole) == (0, SIDE, 0, SIDE):
        return nothing
    shape, overlap = _likeliest(whole & ~hole)
    inside = _eroded(whole & ~hole, 3) & ~paper_like
    top, bottom, left, right = _box(whole)
    middle = ((left + right) / 2 / SIDE, (top + bottom) / 2 / SIDE)
    radius = max(bottom - top, right - left) / SIDE / _extent(shape)
    return Seen(
        shape=shape if overlap >= _OVERLAP else None,
        overlap=overlap,
        colour=colour_name(numpy.median(pixels[inside if inside.any() else whole & ink], axis=0)),
        background=background,
        size=_nearest_size(radius),
        position=min(POSITIONS, key=lambda name: _distance(POSITIONS[name], middle)),
    )


def colour_name(colour: Values) -> str:
    """The colour of the palette that is nearest to an RGB colour, 0 … 255, as eyes see it."""
    lab = _lab(colour)
    return min(COLOURS, key=lambda name: float(numpy.linalg.norm(_palette()[name] - lab)))


@cache
def _palette() -> dict[str, Values]:
    return {name: _lab(numpy.array(colour, dtype=float)) for name, colour in COLOURS.items()}


def _lab(colour: Values) -> Values:
    """CIE L*a*b* (D65) of an sRGB colour, 0 … 255."""
    share = colour / 255
    linear = numpy.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = numpy.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / numpy.array([0.9505, 1.0, 1.089])
    x, y, z = numpy.where(xyz > 0.008856, numpy.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _silhouette(ink: Mask, paper: Mask) -> tuple[Mask, Mask]:
    """The largest thing with all that lies inside of it, and the hole in its middle."""
    closed = _eroded(_dilated(ink, _CLOSING), _CLOSING) | ink
    border = numpy.zeros_like(ink)
    border[[0, -1], :] = border[:, [0, -1]] = True
    outside = _joined(border & ~closed, ~closed)
    whole = _largest(~outside)
    top, bottom, left, right = _box(whole)
    rows, columns = numpy.ogrid[:SIDE, :SIDE]
    reach = 0.2 * max(bottom - top, right - left)
    core = (rows - (top + bottom) / 2) ** 2 + (columns - (left + right) / 2) ** 2 <= reach**2
    free = whole & ~closed & paper
    hole = _joined(core & free, free)
    if hole.sum() < _HOLE * whole.sum() or (core & hole).sum() < 0.8 * core.sum():
        hole = numpy.zeros_like(hole)
    return whole, hole


def _likeliest(silhouette: Mask) -> tuple[str, float]:
    """The shape whose silhouette overlaps most, both stretched to one size; the overlap."""
    seen = _stretched(silhouette)
    overlaps = {
        shape: float(numpy.minimum(seen, known).sum() / numpy.maximum(seen, known).sum())
        for shape, known in _templates().items()
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best, overlaps[best]


@cache
def _templates() -> dict[str, Values]:
    return {shape: _stretched(_drawn(shape)) for shape in SHAPES}


@cache
def _extent(shape: str) -> float:
    """The longer side of a shape of radius 1."""
    top, bottom, left, right = _box(_drawn(shape))
    return max(bottom - top, right - left) / (1.6 * SIDE)


def _drawn(shape: str) -> Mask:
    mask = Image.new("L", (4 * SIDE, 4 * SIDE), 0)
    draw_shape(ImageDraw.Draw(mask), shape, (2 * SIDE, 2 * SIDE), 1.6 * SIDE, 255)
    return numpy.asarray(mask) > 0


def _stretched(mask: Mask) -> Values:
    top, bottom, left, right = _box(mask)
    part = Image.fromarray(mask[top:bottom, left:right].astype(numpy.uint8) * 255)
    scaled = part.resize((_GRID, _GRID), Image.Resampling.BOX)
    return numpy.asarray(scaled, dtype=numpy.float64) / 255


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is set; the whole picture if nothing is."""
    rows, columns = (numpy.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, mask.shape[0], 0, mask.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _largest(mask: Mask) -> Mask:
    """The largest of the things in a mask."""
    left, best = mask.copy(), numpy.zeros_like(mask)
    while left.sum() > best.sum():
        seed = numpy.zeros_like(mask)
        seed.flat[int(left.argmax())] = True
        thing = _joined(seed, left)
        left &= ~thing
        if thing.sum() > best.sum():
            best = thing
    return best


def _joined(seed: Mask, within: Mask) -> Mask:
    """All of `within` that is joined to `seed` by sides of pixels.

    What is found spreads along whole runs of a row, then of a column, until no run is new.
    """
    rows, columns = _runs(within), _runs(within.T)
    found = seed & within
    while True:
        before = found.sum()
        found = _spread(found, rows) & within
        found = _spread(found.T, columns).T & within
        if found.sum() == before:
            return found


def _runs(within: Mask) -> NDArray[numpy.int64]:
    """A number for each run of equal pixels of a row."""
    begins = numpy.ones(within.shape, dtype=bool)
    begins[:, 1:] = within[:, 1:] != within[:, :-1]
    return begins.cumsum().reshape(within.shape)


def _spread(found: Mask, runs: NDArray[numpy.int64]) -> Mask:
    """All pixels of the runs in which something was found."""
    hit = numpy.zeros(int(runs[-1, -1]) + 1, dtype=bool)
    hit[runs[found]] = True
    spread: Mask = hit[runs]
    return spread


def _dilated(mask: Mask, reach: int) -> Mask:
    """All within `reach` pixels of what is set, as a chess king walks."""
    padded = numpy.pad(mask, reach)
    grown = numpy.zeros_like(mask)
    height, width = mask.shape
    for down, across in _steps(reach):
        grown |= padded[down : down + height, across : across + width]
    return grown


def _eroded(mask: Mask, reach: int) -> Mask:
    return ~_dilated(~mask, reach)


def _opened(mask: Mask) -> Mask:
    """Without specks of a few pixels; lines stay."""
    neighbours = numpy.zeros(mask.shape, dtype=int)
    padded = numpy.pad(mask, 1)
    height, width = mask.shape
    for down, across in _steps(1):
        neighbours += padded[down : down + height, across : across + width]
    kept: Mask = mask & (neighbours >= 3)
    return kept


def _steps(reach: int) -> Iterator[tuple[int, int]]:
    return ((down, across) for down in range(2 * reach + 1) for across in range(2 * reach + 1))


def _nearest_size(radius: float) -> str:
    """The size whose range of radii is nearest."""
    return min(SIZES, key=lambda name: max(SIZES[name][0] - radius, radius - SIZES[name][1]))


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
