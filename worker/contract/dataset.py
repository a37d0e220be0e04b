"""What is said of each picture of a job? One row a picture, in the manifest and in the report."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: What was done to a picture before it was encoded.
Change = Literal["rotated", "converted", "cropped", "upscaled", "first_frame"]

#: What a person should look at. None of them keeps a picture out of the training.
Remark = Literal[
    "duplicate", "near_duplicate", "upscaled", "blurred", "caption_too_long", "no_caption"
]

#: Where a caption comes from, the first that exists.
CaptionSource = Literal["message", "file", "template", "none"]


class PictureReport(BaseModel):
    """One picture of the job, used or left out.

    Attributes:
        index: its place in the message, from 0. source: its address in the message.
        reason: why it was left out, half a sentence; none for a picture that is trained on.
        width, height: pixels, upright, before it was cropped; 0 where it could not be read.
        caption_tokens: with start and end, before it is cut to what the text encoder takes.
        sharpness: variance of the Laplacian of the luminance (0 … 255) at the size trained on.
        duplicate_of: index of the first picture that it equals or resembles.
        thumbnail: file name of a small JPEG, if one was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=0)
    source: str
    reason: str | None = None
    sha256: str = ""
    format: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    changes: tuple[Change, ...] = ()
    warnings: tuple[Remark, ...] = ()
    caption: str = ""
    caption_source: CaptionSource = "none"
    caption_tokens: int = 0
    sharpness: float | None = None
    duplicate_of: int | None = None
    thumbnail: str | None = None


def counts(pictures: Sequence[PictureReport]) -> dict[str, int]:
    """How many were given, used and left out, and how many have each warning; for the webhook."""
    warnings = Counter(warning for picture in pictures for warning in picture.warnings)
    left_out = sum(picture.reason is not None for picture in pictures)
    return {
        "pictures": len(pictures),
        "used": len(pictures) - left_out,
        "left_out": left_out,
        **{name: warnings[name] for name in sorted(warnings)},
    }
