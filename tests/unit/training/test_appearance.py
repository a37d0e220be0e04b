"""Sharp or blurred, alike or not: the thresholds are measured on drawn and made-up pictures."""

import statistics
from io import BytesIO
from itertools import combinations

import numpy
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests.fixtures.drawn_pictures import draw_pictures
from worker.training.appearance import (
    BLURRED_BELOW,
    NEAR,
    difference,
    marks,
    sharpness,
    write_thumbnail,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Thirty pictures of one style, of other shapes, places and colours."""
    folder = tmp_path_factory.mktemp("drawn")
    return [Image.open(path).convert("RGB") for path in draw_pictures(folder, 30, size=512)]


def photographs(side: int) -> list[Image.Image]:
    """Noise with the spectrum of photographs: amplitude falling as 1/f to 1/f^1.5.

    Field, "Relations between the statistics of natural images", JOSA A 4 (1987).
    """
    random = numpy.random.default_rng(0)
    frequency = numpy.hypot(*numpy.meshgrid(*[numpy.fft.fftfreq(side)] * 2))
    frequency[0, 0] = 1
    made = []
    for power in (1.0, 1.2, 1.5):
        white = numpy.fft.fft2(random.standard_normal((side, side)))
        values = numpy.fft.ifft2(white / frequency**power).real
        values = (values - values.mean()) / values.std() * 50 + 128
        made.append(Image.fromarray(values.clip(0, 255).astype(numpy.uint8)))
    return made


@pytest.mark.parametrize("side", [64, 256, 512])
def test_sharp_and_blurred_pictures_lie_far_apart_on_both_sides_of_the_threshold(drawn, side):
    pictures = [one.resize((side, side), Image.Resampling.LANCZOS) for one in drawn]
    pictures += photographs(side)
    sharp = [sharpness(one) for one in pictures]
    blurred = [sharpness(one.filter(ImageFilter.GaussianBlur(2))) for one in pictures]
    print(f"{side} px: sharp from {min(sharp):.0f}, blurred to {max(blurred):.0f}")
    assert min(sharp) > 2 * BLURRED_BELOW
    assert max(blurred) < BLURRED_BELOW / 2
    assert statistics.median(sharp) > 10 * BLURRED_BELOW


def altered(image: Image.Image) -> list[Image.Image]:
    """The same picture as others may send it."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=50)
    width, height = image.size
    return [
        Image.open(buffer).convert("RGB"),
        image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        image.resize((width * 2, height * 2), Image.Resampling.BICUBIC),
        image.filter(ImageFilter.GaussianBlur(1)),
        ImageEnhance.Brightness(image).enhance(0.9),
    ]


def test_altered_copies_resemble_their_picture_and_others_of_its_style_do_not(drawn):
    seen = [marks(one) for one in drawn]
    copies = [
        difference(mine, marks(copy))
        for one, mine in zip(drawn, seen, strict=True)
        for copy in altered(one)
    ]
    others = [difference(a, b) for a, b in combinations(seen, 2)]
    print(f"copies differ by at most {max(copies):.2f}, others by at least {min(others):.2f}")
    assert max(copies) < 0.75 * NEAR
    assert min(others) > 1.25 * NEAR


def test_two_plain_papers_are_not_called_alike():
    red, blue = (marks(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    assert difference(red, blue) == 1


@pytest.mark.parametrize("size", [(256, 256), (256, 40)])
def test_a_thumbnail_is_small_whatever_it_shows_and_says_nothing_else(tmp_path, size):
    noise = numpy.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8)
    image = Image.fromarray(noise)
    image.info = {"comment": b"taken at home"}
    write_thumbnail(image, tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").stat().st_size <= 20_000
    assert b"taken at home" not in (tmp_path / "a.jpg").read_bytes()
    with Image.open(tmp_path / "a.jpg") as read:
        assert (read.format, read.size) == ("JPEG", size)
