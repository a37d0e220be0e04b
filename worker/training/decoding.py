"""How does a stranger's file become a small square of RGB without costing gigabytes?

A file of a few hundred kilobytes can unpack to any size. So its pixels are counted in its header, a
JPEG is decoded at about the scale that is needed, and the rest is made RGB and small in strips:
what a picture costs is what its decoder takes, and no second copy.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
from PIL import ExifTags, Image, ImageOps

#: Formats that are read. Everything else Pillow knows stays closed to strangers' files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

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


class TooManyPixels(Exception):  # noqa: N818 - a finding, not a malfunction
    """The picture is larger than is decoded; the text says how large both are."""

    def __init__(self, found: str, most: int) -> None:
        super().__init__(f"it has {found} pixels; {most / 1e6:.0f} million are the most")


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The file with its header read and its pixels counted; nothing is decoded yet.

    Raises:
        PIL.UnidentifiedImageError: it is in none of `FORMATS`.
        TooManyPixels: before they are decoded.
        Exception: whatever else a decoder raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                pixels = image.width * image.height
                if image.format == "WEBP" and pixels > MAX_WEBP_PIXELS:
                    raise TooManyPixels(_millions(pixels), MAX_WEBP_PIXELS)
                yield image
    except Image.DecompressionBombError as error:
        pixels_said = re.search(r"(\d+) pixels", str(error))
        found = _millions(int(pixels_said[1])) if pixels_said else "too many"
        raise TooManyPixels(found, MAX_PIXELS) from error


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} million"


def decode_square(image: Image.Image, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The middle of `image`, upright, RGB, `side` × `side`; and its upright width and height.

    Lets go of the decoded picture. Raises whatever the decoder raises.
    """
    width, height = image.size
    wanted = int(side * _REDUCING_GAP)
    drafted = image.draft(None, (wanted, wanted))
    # In pixels of `image` as it is decoded; a last column that is only partly there counts so.
    extent = drafted[1][2:] if drafted else (float(width), float(height))
    image.load()
    factor = max(1, int(min(extent) / wanted))
    small = _rgb(image, factor)
    square = small.resize(
        (side, side), Image.Resampling.LANCZOS, box=_middle(extent[0] / factor, extent[1] / factor)
    )
    # Where the file says how the camera was held.
    square.info = image.info
    image.close()
    if square.getexif().get(ExifTags.Base.Orientation, 1) in _LYING:
        width, height = height, width
    return ImageOps.exif_transpose(square), (width, height)


def _middle(width: float, height: float) -> tuple[float, float, float, float]:
    """The largest square in the middle: left, top, right, bottom."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _rgb(image: Image.Image, factor: int) -> Image.Image:
    """`image` in RGB, each `factor` × `factor` pixels averaged to one."""
    width, height = image.size
    brightest = _brightest(image)
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        small.paste(_to_rgb(strip, brightest).reduce(factor), (0, top // factor))
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
    if image.mode in ("P", "PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
