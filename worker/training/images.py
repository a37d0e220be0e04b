"""Untrusted picture files become tensors, or a sentence that says what is wrong with them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch
from PIL import Image

from worker.contract.dataset import Change
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile
from worker.training.appearance import marks, sharpness, write_thumbnail
from worker.training.baton import aside
from worker.training.decoder_process import DecoderProcess
from worker.training.decoding import BadFile, Decoded, decode_file
from worker.training.framing import Cut, Framing, square
from worker.training.places import places

#: What makes a file's parts of it; raises `BadFile`.
Decode = Callable[[str, Framing, Sequence[float]], Decoded]

#: Bad pictures that an error message names.
_NAMED = 5


@dataclass(frozen=True)
class Picture:
    """A usable picture; its pixels are elsewhere.

    Attributes:
        file: where it came from, and its caption. sha256: of the file.
        width, height: of the file, after turning it upright.
        format: of the file, Pillow's name. bytes: its size. changes: what was done to it.
        cuts: where the parts that are trained on lie in it.
        sharpness, marks: as `worker.training.appearance` has them; sharpness of what is trained on.
    """

    file: ImageFile
    sha256: str
    width: int
    height: int
    format: str = ""
    bytes: int = 0
    changes: tuple[Change, ...] = ()
    cuts: tuple[Cut, ...] = ()
    sharpness: float = 0.0
    marks: int = 0


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and why, in a few words for a person."""

    file: ImageFile
    reason: str


class Pictures:
    """A job's pictures, read one at a time: the pixels of a thousand of them are gigabytes.

    They are decoded in a process of their own, which no other job's pictures ever come to.

    Attributes:
        good, bad: those found until now, in the job's order.
    """

    def __init__(
        self,
        files: Iterable[ImageFile],
        framing: Framing | int,
        on_bad_image: Literal["skip", "fail"],
        *,
        thumbnails: Path | None = None,
        after: "Pictures | None" = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            files: the job's pictures.
            framing: how they are cut; a number is the side of a square in the middle, pixels.
            on_bad_image: whether a picture that cannot be used is left out or ends the job.
            thumbnails: an existing folder for a small JPEG of each usable picture.
            after: those of the job that are read before these, and are counted first.
        """
        self._files, self._on_bad_image, self._thumbnails = files, on_bad_image, thumbnails
        self._framing = square(framing) if isinstance(framing, int) else framing
        self._after = after
        self.good: list[Picture] = []
        self.bad: list[BadPicture] = []

    @property
    def captions(self) -> list[str]:
        """What the usable ones show, in the job's order."""
        return [picture.file.caption for picture in self.good]

    def __iter__(self) -> Iterator[tuple[Picture, torch.Tensor]]:
        """Read them; gives each usable picture with its pixels, as `read_picture` does.

        Raises:
            JobError: `INVALID_IMAGE`, after the last one: a picture is bad and the job wants none
                left out, or all are. `TRAINING_FAILED`: nothing can be decoded here.
        """
        with DecoderProcess() as decoder:
            for file in self._files:
                with aside():
                    found = read_picture(
                        file, self._framing, self._thumbnails, decoder.decode, number=self._next
                    )
                if isinstance(found, BadPicture):
                    self.bad.append(found)
                    continue
                self.good.append(found[0])
                # A job that is lost reads on: its sender hears of every bad picture at once.
                if not self._lost:
                    yield found
        if self._lost or not self.good:
            raise self._refusal()

    @property
    def _next(self) -> int:
        """The number of the next picture among all usable ones, which a manifest is of."""
        return len(self.good) + (len(self._after.good) if self._after else 0)

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


def thumbnail_name(file: ImageFile) -> str:
    """The name of a picture's thumbnail in its folder."""
    return f"{file.index:06d}.jpg"


def read_picture(
    file: ImageFile,
    framing: Framing,
    thumbnails: Path | None = None,
    decode: Decode = decode_file,
    *,
    number: int = 0,
) -> tuple[Picture, torch.Tensor] | BadPicture:
    """Read one file: the picture and its pixels, fp32 in [-1, 1]; or what is wrong.

    The pixels are `[3, H, W]`; `[K, 3, H, W]` where K different parts of it are wanted. Where these
    lie follows from the `number` of the picture among the usable ones.
    """
    try:
        found = decode(file.path, framing, places(framing, number))
    except BadFile as error:
        return BadPicture(file, str(error))
    with Path(file.path).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = content.tell()
    if thumbnails is not None:
        write_thumbnail(found.whole, thumbnails / thumbnail_name(file))
    pixels = [_pixels(part) for part in found.parts]
    picture = Picture(
        file,
        digest,
        found.width,
        found.height,
        format=found.format,
        bytes=size,
        changes=found.changes,
        cuts=found.cuts,
        sharpness=sharpness(found.parts[0]),
        marks=marks(found.whole),
    )
    return picture, pixels[0] if len(pixels) == 1 else torch.stack(pixels)


def _pixels(image: Image.Image) -> torch.Tensor:
    """`[3, H, W]`, fp32 in [-1, 1]."""
    values = torch.from_numpy(numpy.array(image, dtype=numpy.float32)).permute(2, 0, 1)
    return (values / 127.5 - 1).contiguous()
