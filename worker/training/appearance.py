"""What can be seen of a picture without a model: is it sharp, what does it resemble?"""

from io import BytesIO
from pathlib import Path

import numpy
from PIL import Image

#: A picture whose Laplacian varies less is blurred. Drawn pictures and noise with the spectrum of
#: photographs have 110 and more at the size trained on; blurred by a Gaussian of 2 pixels, 19 and
#: less: a test measures both.
BLURRED_BELOW = 40.0

#: Pictures that differ in a smaller share of their marks are near duplicates. Of one picture
#: compressed, halved, doubled, blurred and darkened the share is at most 0.1; of two pictures drawn
#: in one style, at least 0.3.
NEAR = 0.2

#: Cells of a picture on a side, and by how much neighbours must differ to count, of 255: on a plain
#: ground a compressor's noise would decide otherwise.
_CELLS = 8
_MARGIN = 4

#: Largest file of a thumbnail, bytes, and the qualities that are tried.
_THUMBNAIL_BYTES = 20_000
_QUALITIES = (85, 70, 50, 30, 10)


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian of the luminance, 0 … 255.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    y = numpy.asarray(image.convert("L"), dtype=numpy.float32)
    inner = y[1:-1, 1:-1]
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def marks(image: Image.Image) -> int:
    """A perceptual hash: where a picture gets lighter or darker, as the bits of a number.

    The difference hash (N. Krawetz, "Kind of Like That", hackerfactor.com, 2013) of each colour, in
    both directions, with a margin. Written here because the libraries for it need SciPy for others
    of their hashes, and have no margin, so that two drawings on plain paper look alike to them.
    """
    side = _CELLS + 1
    small = image.resize((side, side), Image.Resampling.LANCZOS)
    cells = numpy.asarray(small, dtype=numpy.float32)
    corner = cells[:-1, :-1]
    change = numpy.stack([cells[:-1, 1:] - corner, cells[1:, :-1] - corner])
    bits = numpy.concatenate([(change > _MARGIN).ravel(), (change < -_MARGIN).ravel()])
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def difference(a: int, b: int) -> float:
    """The share of the marks of either picture that are not the other's: 0 equal, 1 nothing alike.

    Two pictures without any marks are not comparable: 1.
    """
    either = (a | b).bit_count()
    return (a ^ b).bit_count() / either if either else 1.0


def write_thumbnail(image: Image.Image, path: Path) -> None:
    """Save a small RGB picture as a JPEG of at most 20 kB, without what else its file said."""
    image.info = {}
    for quality in _QUALITIES:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _THUMBNAIL_BYTES:
            break
    path.write_bytes(buffer.getvalue())
