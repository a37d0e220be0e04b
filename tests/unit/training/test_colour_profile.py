"""A file's numbers mean the colours that its profile says: these are trained on, in sRGB."""

from io import BytesIO
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from tests.fixtures.colour_profiles import ADOBE_GAMMA, ADOBE_RGB, adobe_rgb, inks
from worker.training.decoder_process import DecoderProcess
from worker.training.decoding import Decoded, decode_file
from worker.training.framing import square

RED = (200, 30, 40)

#: Linear sRGB in XYZ under D50, one column for each primary (IEC 61966-2-1, adapted by Bradford).
SRGB = (
    (0.4360747, 0.3850649, 0.1430804),
    (0.2225045, 0.7168786, 0.0606169),
    (0.0139322, 0.0971045, 0.7141733),
)

Colour = tuple[int, ...]


def meant(colour: Colour) -> numpy.ndarray:
    """The numbers in sRGB of a colour that is given in Adobe RGB."""
    xyz = numpy.array(ADOBE_RGB) @ (numpy.array(colour) / 255) ** ADOBE_GAMMA
    linear = (numpy.linalg.inv(numpy.array(SRGB)) @ xyz).clip(0, 1)
    encoded = numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded * 255


def written(folder: Path, image: Image.Image, kind: str, profile: bytes | None, **options) -> str:
    path = folder / "picture"
    image.save(path, kind, **({"icc_profile": profile} if profile else {}), **options)
    return str(path)


def read(path: str) -> Decoded:
    return decode_file(path, square(64), (0.5,))


def colour_of(found: Decoded) -> Colour:
    colour = found.parts[0].getpixel((32, 32))
    assert colour == found.whole.getpixel((found.whole.width // 2, found.whole.height // 2))
    return colour


def solid(colour: Colour = RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (80, 60), colour)


def noise(mode: str = "RGB", size=(300, 200)) -> Image.Image:
    count = size[0] * size[1] * len(mode)
    return Image.frombytes(mode, size, numpy.random.default_rng(7).bytes(count))


def bits(found: Decoded) -> list[bytes]:
    return [image.tobytes() for image in (*found.parts, found.whole)]


@pytest.mark.parametrize("colour", [RED, (30, 180, 60), (90, 120, 200), (255, 255, 255)])
def test_a_picture_in_adobe_rgb_has_the_colours_that_it_means(tmp_path, colour):
    found = read(written(tmp_path, solid(colour), "PNG", adobe_rgb()))
    assert numpy.abs(numpy.subtract(colour_of(found), meant(colour))).max() <= 2
    assert found.changes == ("converted", "cropped", "upscaled")


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (solid(), "JPEG", {"quality": 100, "subsampling": 0}),
        (solid(), "WEBP", {"lossless": True}),
        (solid(), "TIFF", {}),
        (solid((*RED, 255), "RGBA"), "PNG", {}),
        (solid().quantize(), "PNG", {}),
    ],
)
def test_so_it_is_in_every_format_and_behind_a_palette_or_alpha(tmp_path, image, kind, options):
    found = read(written(tmp_path, image, kind, adobe_rgb(), **options))
    assert numpy.abs(numpy.subtract(colour_of(found), meant(RED))).max() <= 4
    assert "converted" in found.changes


def test_what_is_see_through_lies_on_white_all_the_same(tmp_path):
    found = read(written(tmp_path, solid((0, 0, 0, 0), "RGBA"), "PNG", adobe_rgb()))
    assert colour_of(found) == (255, 255, 255)


@pytest.mark.parametrize(
    ("colour", "expected"),
    # Lab of the full inks, worked out in sRGB; without a profile they are (0, 255, 255) and so on.
    [((255, 0, 0, 0), (0, 152, 219)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_have_the_colours_of_their_press(tmp_path, kind, colour, expected):
    options = {"quality": 100} if kind == "JPEG" else {}
    found = read(written(tmp_path, solid(colour, "CMYK"), kind, inks(), **options))
    assert numpy.abs(numpy.subtract(colour_of(found), expected)).max() <= 3
    assert "converted" in found.changes


def test_a_picture_that_is_turned_has_its_colours_changed_too(tmp_path):
    image = solid()
    exif = image.getexif()
    exif[0x0112] = 6
    found = read(written(tmp_path, image, "JPEG", adobe_rgb(), exif=exif, quality=100))
    assert (found.width, found.height) == (60, 80)
    assert found.changes[:2] == ("rotated", "converted")
    assert numpy.abs(numpy.subtract(colour_of(found), meant(RED))).max() <= 4


SRGB_OF_LCMS = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    "profile",
    [
        SRGB_OF_LCMS,
        # What says that it is sRGB is taken at its word: no bit of ordinary photographs changes.
        adobe_rgb("sRGB IEC61966-2.1"),
        b"no profile",
        adobe_rgb()[:300],
        adobe_rgb()[:128] + b"\xff" * 400,
        inks(),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_under_srgb_or_what_is_no_profile_of_it_every_bit_is_as_without(tmp_path, kind, profile):
    plain = read(written(tmp_path, noise(), kind, None))
    found = read(written(tmp_path, noise(), kind, profile))
    assert bits(found) == bits(plain)
    assert found.changes == plain.changes


def test_a_grey_picture_and_one_in_ink_take_no_profile_of_rgb(tmp_path):
    for mode in ("L", "CMYK"):
        plain = read(written(tmp_path, noise(mode), "JPEG", None))
        found = read(written(tmp_path, noise(mode), "JPEG", adobe_rgb()))
        assert bits(found) == bits(plain)


def test_the_confined_process_changes_colours_as_it_is_done_here(tmp_path):
    with DecoderProcess() as decoder:
        for mode, profile in (("RGB", adobe_rgb()), ("CMYK", inks())):
            path = written(tmp_path, noise(mode), "TIFF", profile)
            there = decoder.decode(path, square(64), (0.5,))
            assert bits(there) == bits(read(path))
            assert "converted" in there.changes


def test_a_profile_is_not_what_a_picture_is_refused_for(tmp_path):
    """Any byte of a profile may be anything."""
    profile, dice = adobe_rgb(), numpy.random.default_rng(7)
    with DecoderProcess() as decoder:
        for _ in range(100):
            damaged = bytearray(profile)
            for place in dice.integers(len(damaged), size=dice.integers(1, 8)):
                damaged[place] = dice.integers(256)
            out = BytesIO()
            solid().save(out, "JPEG", icc_profile=bytes(damaged))
            (tmp_path / "picture").write_bytes(out.getvalue())
            found = decoder.decode(str(tmp_path / "picture"), square(64), (0.5,))
            assert found.width == 80
