"""Untrusted picture files become tensors, or a sentence that says what is wrong with them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch
from PIL import UnidentifiedImageError

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile
from worker.training.decoding import FORMATS, TooManyPixels, decode_square, opened

#: Smallest side of a picture that is trained on, pixels.
MIN_SIDE = 16

#: Bad pictures that an error message names.
_NAMED = 5


@dataclass(frozen=True)
class Picture:
    """A usable picture; its pixels are elsewhere.

    Attributes:
        file: where it came from, and its caption. sha256: of the file.
        width, height: of the file, after turning it upright.
    """

    file: ImageFile
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and why, in a few words for a person."""

    file: ImageFile
    reason: str


class Pictures:
    """A job's pictures, read one at a time: the pixels of a thousand of them are gigabytes.

    Attributes:
        good, bad: those found until now, in the job's order.
    """

    def __init__(
        self, files: Iterable[ImageFile], resolution: int, on_bad_image: Literal["skip", "fail"]
    ) -> None:
        self._files, self._resolution, self._on_bad_image = files, resolution, on_bad_image
        self.good: list[Picture] = []
        self.bad: list[BadPicture] = []

    def __iter__(self) -> Iterator[tuple[Picture, torch.Tensor]]:
        """Read them; gives each usable picture with its pixels, as `read_picture` does.

        Raises:
            JobError: `INVALID_IMAGE`, after the last one: a picture is bad and the job wants none
                left out, or all are.
        """
        for file in self._files:
            found = read_picture(file, self._resolution)
            if isinstance(found, BadPicture):
                self.bad.append(found)
                continue
            self.good.append(found[0])
            # A job that is lost reads on, so that its sender hears of every bad picture at once.
            if not self._lost:
                yield found
        if self._lost or not self.good:
            raise self._refusal()

    @property
    def _lost(self) -> bool:
        return bool(self.bad) and self._on_bad_image == "fail"

    def _refusal(self) -> JobError:
        bad, count = self.bad, len(self.bad) + len(self.good)
        named = "; ".join(f"{item.file.source}: {item.reason}" for item in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        return JobError(
            ErrorCode.INVALID_IMAGE,
            f"{len(bad)} of {count} pictures cannot be used: {named}{more}.",
        )


def read_picture(file: ImageFile, resolution: int) -> tuple[Picture, torch.Tensor] | BadPicture:
    """Read one file: the picture and its pixels, `[3, R, R]`, fp32 in [-1, 1]; or what is wrong."""
    try:
        with opened(file.path) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                few = f"it has {width} × {height} pixels; each side must have at least {MIN_SIDE}"
                return BadPicture(file, few)
            square, (width, height) = decode_square(image, resolution)
        with Path(file.path).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except UnidentifiedImageError:
        return BadPicture(file, f"it is not a picture in one of the formats {', '.join(FORMATS)}")
    except TooManyPixels as error:
        return BadPicture(file, str(error))
    except Exception as error:
        # Decoders meet strangers' bytes and raise whatever they like; all of it means one thing.
        return BadPicture(file, f"it is damaged or cut off ({type(error).__name__})")
    pixels = torch.from_numpy(numpy.array(square, dtype=numpy.float32)).permute(2, 0, 1)
    return Picture(file, digest, width, height), (pixels / 127.5 - 1).contiguous()
