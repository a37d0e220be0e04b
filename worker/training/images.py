"""Untrusted picture files become tensors, or a sentence that says what is wrong with them."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile

#: Formats that are read. Everything else Pillow knows stays closed to strangers' files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

#: Smallest side of a picture that is trained on, pixels.
MIN_SIDE = 16

#: Largest picture that is decoded, pixels: where Pillow warns, which is an error here.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS

#: Bad pictures that an error message names.
_NAMED = 5


@dataclass(frozen=True)
class Picture:
    """A usable picture.

    Attributes:
        file: where it came from, and its caption.
        pixels: `[3, R, R]`, fp32 in [-1, 1]. sha256: of the file.
        width, height: of the file, after turning it upright.
    """

    file: ImageFile
    pixels: torch.Tensor
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and why, in a few words for a person."""

    file: ImageFile
    reason: str


def read_pictures(
    files: list[ImageFile], resolution: int, on_bad_image: Literal["skip", "fail"]
) -> tuple[list[Picture], list[BadPicture]]:
    """Read all pictures; what is left out is in the second list.

    Raises:
        JobError: `INVALID_IMAGE`; a picture is bad and the job wants none left out, or all are.
    """
    good: list[Picture] = []
    bad: list[BadPicture] = []
    for file in files:
        found = read_picture(file, resolution)
        if isinstance(found, Picture):
            good.append(found)
        else:
            bad.append(found)
    if bad and (on_bad_image == "fail" or not good):
        named = "; ".join(f"{item.file.source}: {item.reason}" for item in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise JobError(
            ErrorCode.INVALID_IMAGE,
            f"{len(bad)} of {len(files)} pictures cannot be used: {named}{more}.",
        )
    return good, bad


def read_picture(file: ImageFile, resolution: int) -> Picture | BadPicture:
    """Decode one file: upright, RGB on white, resized and cropped to `resolution`."""
    try:
        data = Path(file.path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file.path, formats=FORMATS) as opened:
                upright = ImageOps.exif_transpose(opened)
                rgb = to_rgb(upright)
    except UnidentifiedImageError:
        return BadPicture(file, f"it is not a picture in one of the formats {', '.join(FORMATS)}")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return BadPicture(file, f"it has too many pixels; {MAX_PIXELS} are the most")
    except Exception as error:
        # Decoders meet strangers' bytes and raise whatever they like; all of it means one thing.
        return BadPicture(file, f"it is damaged or cut off ({type(error).__name__})")
    width, height = rgb.size
    if min(width, height) < MIN_SIDE:
        return BadPicture(
            file, f"it has {width} × {height} pixels; each side must have at least {MIN_SIDE}"
        )
    fitted = ImageOps.fit(rgb, (resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(numpy.array(fitted, dtype=numpy.float32)).permute(2, 0, 1)
    return Picture(
        file=file,
        pixels=(pixels / 127.5 - 1).contiguous(),
        sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit is scaled, alpha lies on white, an animation's first frame."""
    if image.mode.startswith("I") or image.mode == "F":
        values = numpy.asarray(image, dtype=numpy.float64)
        # 16-bit formats arrive as integers up to 65535, floating-point ones as 0 … 1.
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0
        image = Image.fromarray((values.clip(0, top) / top * 255).round().astype(numpy.uint8))
    if image.mode in ("P", "PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
