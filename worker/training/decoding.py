"""How does a stranger's file become a small piece of RGB without costing gigabytes?

A file of a few hundred kilobytes can unpack to any size. So its pixels are counted in its header, a
JPEG is decoded at about the scale that is needed, and the rest is made RGB and small in strips:
what a picture costs is what its decoder takes, and no second copy.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageCms import ImageCmsTransform

from worker.training.colour_profile import to_srgb
from worker.training.framing import Cut, Framing, Size, cut_at
from worker.training.jpeg_scans import MAX_SCANS, count_scans

# The process that decodes pictures imports this module, and is to be there soon.
if TYPE_CHECKING:
    from worker.contract.dataset import Change

#: Formats that are read. Everything else Pillow knows stays closed to strangers' files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

#: Smallest side of a picture that is trained on, pixels.
MIN_SIDE = 16

#: Largest picture that is decoded, pixels: more than a full-frame camera's. Decoders take 4 bytes
#: for each, or fewer; the one for WebP takes 14.
MAX_PIXELS = 64_000_000
MAX_WEBP_PIXELS = 32_000_000

# Pillow refuses what has more than twice its limit before it decodes it, and warns below that.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

#: A picture is averaged over blocks of pixels while it is so many times larger than needed. The
#: filter then sees enough of it that the result cannot be told from filtering the whole.
_REDUCING_GAP = 3.0

#: Pixels that are made RGB at once.
_STRIP_PIXELS = 2**20

#: Orientations (EXIF 2.3, tag 274) in which width and height change places.
_LYING = (5, 6, 7, 8)
_UPRIGHT = 1

#: Orientations in which the file's picture runs from the right, or from below, to what is upright.
_FROM_THE_RIGHT = (2, 3, 6, 7)
_FROM_BELOW = (3, 4, 7, 8)

#: What turns the picture in the file upright, by its orientation.
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Longest side of what is kept of a whole picture, pixels.
WHOLE_SIDE = 256

#: Modes that hold transparency.
_SEE_THROUGH = ("P", "PA", "LA", "RGBA", "RGBa", "La")


class BadFile(Exception):  # noqa: N818 - a finding, not a malfunction
    """The file cannot be used; the text says why in a few words, to follow its name."""


@dataclass(frozen=True)
class Decoded:
    """A picture, upright and in RGB.

    Attributes:
        format: of the file, Pillow's name.
        parts: what is trained on, all of one size. cuts: where each lies.
        whole: all of it, small.
        width, height: of the file, upright.
        changes: what was done to it.
    """

    format: str
    parts: tuple[Image.Image, ...]
    cuts: tuple[Cut, ...]
    whole: Image.Image
    width: int
    height: int
    changes: "tuple[Change, ...]"


def decode_file(path: str, framing: Framing, places: Sequence[float]) -> Decoded:
    """The parts of the picture in a stranger's file that `framing` and `places` ask for.

    Raises:
        BadFile: whatever else the decoders raise means that the picture is damaged.
    """
    try:
        with opened(path) as image:
            return decode(image, framing, places)
    except BadFile:
        raise
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise BadFile(f"it is not a picture in one of the formats {known}") from None
    except MemoryError:
        raise BadFile("it takes too much memory to decode") from None
    except Exception as error:
        raise BadFile(f"it is damaged or cut off ({type(error).__name__})") from None


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The file with its header read and its pixels counted; nothing is decoded yet.

    Raises:
        PIL.UnidentifiedImageError: it is in none of `FORMATS`.
        BadFile: it is too small, or too costly: it has too many pixels or scans.
        Exception: whatever else a decoder raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _refuse_by_its_header(image, path)
                yield image
    except Image.DecompressionBombError as error:
        pixels_said = re.search(r"(\d+) pixels", str(error))
        found = _millions(int(pixels_said[1])) if pixels_said else "too many"
        raise _too_many_pixels(found, MAX_PIXELS) from error


def _refuse_by_its_header(image: Image.Image, path: str) -> None:
    width, height = image.size
    if image.format == "WEBP" and width * height > MAX_WEBP_PIXELS:
        raise _too_many_pixels(_millions(width * height), MAX_WEBP_PIXELS)
    if min(width, height) < MIN_SIDE:
        least = f"each side must have at least {MIN_SIDE}"
        raise BadFile(f"it has {width} × {height} pixels; {least}")
    if image.format in ("JPEG", "MPO") and (scans := count_scans(path)) > MAX_SCANS:
        raise BadFile(f"it is a JPEG of {scans} scans; {MAX_SCANS} are the most")


def _too_many_pixels(found: str, most: int) -> BadFile:
    return BadFile(f"it has {found} pixels; {_millions(most)} are the most")


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} million"


def decode(image: Image.Image, framing: Framing, places: Sequence[float]) -> Decoded:
    """The parts of `image` that `framing` asks for, each at one of `places`, 0 … 1 of its way.

    Lets go of the decoded picture. Raises whatever the decoder raises.
    """
    kind = image.format or ""
    width, height = image.size
    colours = to_srgb(image)
    changes = _made_plain(image, recoloured=colours is not None)
    wanted = int(framing.longest * _REDUCING_GAP)
    drafted = image.draft(None, (wanted, wanted))
    # In pixels of `image` as it is decoded; a last column that is only partly there counts so.
    extent = drafted[1][2:] if drafted else (float(width), float(height))
    image.load()
    # Read again: some decoders have turned the picture by now.
    orientation = _orientation(image)
    lying = orientation in _LYING
    upright = (height, width) if lying else (width, height)
    size = framing.size_for(*upright)
    raster = size[::-1] if lying else size
    larger = min(have / (want * _REDUCING_GAP) for have, want in zip(extent, raster, strict=True))
    factor = max(1, int(larger))
    small = _small(image, factor, colours.input_mode if colours else "RGB")
    reduced = (extent[0] / factor, extent[1] / factor)
    places = _distinct(places, reduced, raster)
    wide = upright[0] * size[1] > upright[1] * size[0]
    reverse = orientation in (_FROM_THE_RIGHT if wide else _FROM_BELOW)
    boxes = [_box(reduced, raster, 1 - place if reverse else place) for place in places]
    left, top, right, bottom = boxes[0]
    if (right - left, bottom - top) != reduced:
        changes.append("cropped")
    if (right - left) * factor * width / extent[0] < raster[0]:
        changes.append("upscaled")
    parts = [small.resize(raster, Image.Resampling.LANCZOS, box=box) for box in boxes]
    image.close()
    whole = small.reduce(max(1, max(small.size) // (2 * WHOLE_SIDE)))
    whole.thumbnail((WHOLE_SIDE, WHOLE_SIDE))
    return Decoded(
        format=kind,
        parts=tuple(_finished(part, colours, orientation) for part in parts),
        cuts=tuple(cut_at(upright, size, place) for place in places),
        whole=_finished(whole, colours, orientation),
        width=upright[0],
        height=upright[1],
        changes=tuple(changes),
    )


def _made_plain(image: Image.Image, *, recoloured: bool) -> "list[Change]":
    """What is done to a picture before it is cut, so that it is one upright RGB picture."""
    found: dict[Change, bool] = {
        "rotated": _orientation(image) != _UPRIGHT,
        "converted": image.mode != "RGB" or "transparency" in image.info or recoloured,
        "first_frame": _moves(image),
    }
    return [change for change, done in found.items() if done]


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 … 8; upright where the file does not say so readably."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except MemoryError:
        raise
    except Exception:
        # What is written beside the picture is damaged; the picture need not be.
        return _UPRIGHT
    return found if isinstance(found, int) and found in _TURN else _UPRIGHT


def _finished(
    image: Image.Image, colours: ImageCmsTransform | None, orientation: int
) -> Image.Image:
    """A part upright and in sRGB. Whole pictures are too large to have their colours changed."""
    if colours is not None:
        image = colours.apply(image)
    turn = _TURN.get(orientation)
    return image if turn is None else image.transpose(turn)


def _moves(image: Image.Image) -> bool:
    """Whether there are more frames than the first."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        # The first frame decides whether a picture can be used, not what comes after it.
        return True


def _distinct(places: Sequence[float], extent: tuple[float, float], size: Size) -> Sequence[float]:
    """The places of the parts; one where a part has no way to be moved."""
    return places if _box(extent, size, 0.0) != _box(extent, size, 1.0) else places[:1]


def _box(
    extent: tuple[float, float], size: Size, place: float
) -> tuple[float, float, float, float]:
    """The largest part of the aspect ratio of `size`: left, top, right, bottom."""
    width, height = extent
    if width / size[0] > height / size[1]:
        width = height * (size[0] / size[1])
    else:
        height = width * (size[1] / size[0])
    left, top = (extent[0] - width) * place, (extent[1] - height) * place
    return left, top, left + width, top + height


def _small(image: Image.Image, factor: int, mode: str) -> Image.Image:
    """`image` in RGB, or left in CMYK, each `factor` × `factor` pixels averaged to one."""
    width, height = image.size
    brightest = _brightest(image)
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    small = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        plain = strip if mode == "CMYK" else _to_rgb(strip, brightest)
        small.paste(plain.reduce(factor), (0, top // factor))
    return small


def _brightest(image: Image.Image) -> float:
    """The value that is white, for modes of more than 8 bits."""
    if image.mode != "F":
        return 65535.0
    # Floating-point formats hold 0 … 1, or what a 16-bit one would.
    _, highest = image.getextrema()
    return 1.0 if isinstance(highest, float) and highest <= 1 else 65535.0


def _to_rgb(image: Image.Image, brightest: float) -> Image.Image:
    """8-bit RGB of any mode: 16-bit is scaled, alpha lies on white, an animation's first frame."""
    if image.mode.startswith("I") or image.mode == "F":
        values = numpy.asarray(image, dtype=numpy.float64)
        scaled = values.clip(0, brightest) / brightest * 255
        image = Image.fromarray(scaled.round().astype(numpy.uint8))
    if image.mode in _SEE_THROUGH or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
