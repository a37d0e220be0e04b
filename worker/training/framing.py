"""Which part of a picture is trained on, and at which size? Decided before it is decoded."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

# The process that decodes pictures imports this module, and is to be there soon.
if TYPE_CHECKING:
    from worker.contract.parameters import TrainingParameters

#: Parts of a picture that are encoded where it is cropped at random; one of them is shown in each
#: pass. With mirror images there are twice as many.
RANDOM_CROPS = 4

#: Sides of a bucket are multiples of so many pixels, or of an eighth of the resolution where that
#: is less: 8 at a resolution of 64, 64 from 512 on.
_COARSEST_STEP = 64

#: Longest side of a bucket, as a multiple of the resolution.
_LONGEST = 2

#: Width and height, pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """Where a part lies in its picture, in pixels of the picture scaled as the part is.

    Attributes:
        left, top: of the part. right: what is beyond it, and so the left of its mirror image.
        size: width and height of the part.
    """

    left: int
    top: int
    right: int
    size: Size


@dataclass(frozen=True)
class Framing:
    """How a job's pictures are cut.

    Attributes:
        sizes: the sizes that are trained at, one or many. crops: parts of a picture.
        seed: of the places of parts that lie at random.
    """

    sizes: tuple[Size, ...]
    crops: int = 1
    seed: int = 0

    @property
    def longest(self) -> int:
        """The longest side that a picture may get, pixels."""
        return max(max(size) for size in self.sizes)

    def size_for(self, width: int, height: int) -> Size:
        """The size whose aspect ratio is nearest to that of an upright picture.

        Nearest by logarithm, so that a picture and the same one lying are treated alike.
        """
        ratio = math.log(width / height)
        return min(self.sizes, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


def square(resolution: int) -> Framing:
    """The largest square in the middle."""
    return Framing(((resolution, resolution),))


def framing_of(rules: "TrainingParameters", seed: int) -> Framing:
    """How a job asks for its pictures to be cut."""
    one = ((rules.resolution, rules.resolution),)
    sizes = bucket_sizes(rules.resolution) if rules.aspect_ratio_buckets else one
    return Framing(sizes, 1 if rules.center_crop else RANDOM_CROPS, seed)


def cut_at(picture: Size, size: Size, place: float) -> Cut:
    """The largest part of the ratio of `size` of an upright picture, at a place of 0 … 1."""
    width, height = picture
    if width * size[1] > height * size[0]:
        scaled = (int(size[1] * width / height), size[1])
    else:
        scaled = (size[0], int(size[0] * height / width))
    left, top = (round((all_ - part) * place) for all_, part in zip(scaled, size, strict=True))
    return Cut(left, top, scaled[0] - size[0] - left, size)


def bucket_sizes(resolution: int) -> tuple[Size, ...]:
    """The sizes near `resolution`² pixels, never above, from 1:4 to 4:1, by width.

    As in "NovelAI Improvements on Stable Diffusion" (blog.novelai.net, 2022): for each width the
    greatest height that keeps the area, and the same lying.
    """
    step = min(_COARSEST_STEP, max(8, resolution // 64 * 8))
    found = set()
    for short in range(step, resolution + 1, step):
        long = min(resolution * _LONGEST, resolution**2 // short) // step * step
        if short * _LONGEST >= resolution:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found | {(resolution, resolution)}))
