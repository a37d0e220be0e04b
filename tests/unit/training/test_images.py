"""Whatever a stranger's picture file is: upright RGB of the right colours, or a sentence."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageOps

from tests.fixtures.colour_profiles import adobe_rgb
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile
from worker.training.framing import square
from worker.training.images import BadPicture, Picture, Pictures, read_picture

RED = (200, 30, 40)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def solid(mode="RGB", colour=RED, size=(80, 60)) -> Image.Image:
    return Image.new(mode, size, colour)


Found = tuple[Picture, torch.Tensor] | BadPicture


def read(tmp_path: Path, body: bytes, resolution=64) -> Found:
    path = tmp_path / "000000"
    path.write_bytes(body)
    return read_picture(
        ImageFile(index=0, path=str(path), source="s3://b/a.jpg"), square(resolution)
    )


def usable(found: Found) -> tuple[Picture, torch.Tensor]:
    assert not isinstance(found, BadPicture), found
    return found


def colour_of(found: Found) -> tuple[int, ...]:
    """The colour in the middle, 0 … 255."""
    _, pixels = usable(found)
    middle = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]
    return tuple(round(float(value)) for value in (middle + 1) * 127.5)


def palette_with_transparency() -> bytes:
    image = solid().convert("P")
    return saved(image, "PNG", transparency=image.getpixel((0, 0)))


def animation() -> bytes:
    frames = [solid("RGB", colour) for colour in (RED, (0, 255, 0))]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("body", "colour"),
    [
        (saved(solid(), "PNG"), RED),
        (saved(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
        (saved(solid("I;16", 65535), "PNG"), (255, 255, 255)),
        (saved(solid("I;16", 32896), "PNG"), (128, 128, 128)),
        (saved(solid().quantize(), "PNG"), RED),
        (palette_with_transparency(), (255, 255, 255)),
        (saved(solid("RGBA", (*RED, 255)), "PNG"), RED),
        (saved(solid("RGBA", (0, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (saved(solid("LA", (0, 128)), "PNG"), (127, 127, 127)),
        (saved(solid("L", 90), "PNG"), (90, 90, 90)),
        (saved(solid("1", 1), "PNG"), (255, 255, 255)),
        (saved(solid(), "WEBP", lossless=True), RED),
        (saved(solid(), "BMP"), RED),
        (saved(solid(), "TIFF"), RED),
        (animation(), RED),
    ],
)
def test_odd_pictures_have_the_right_colours(tmp_path, body, colour):
    found = colour_of(read(tmp_path, body))
    assert numpy.abs(numpy.subtract(found, colour)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_picture_is_turned_upright(tmp_path, kind):
    image = solid(colour=(0, 0, 0), size=(100, 60))
    image.paste((255, 255, 255), (0, 0, 100, 20))  # white on top, as the sensor saw it
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned clockwise: white is on the right
    picture, pixels = usable(read(tmp_path, saved(image, kind, exif=exif, quality=95)))
    assert (picture.width, picture.height) == (60, 100)
    assert float(pixels[:, 32, -4].mean()) > 0.9
    assert float(pixels[:, 32, 4].mean()) < -0.9


def with_exif_chunk(png: bytes, content: bytes) -> bytes:
    """A PNG with an eXIf chunk of any content behind its header."""
    checked = b"eXIf" + content
    chunk = struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
    return png[:33] + chunk + png[33:]


def with_exif_segment(jpeg: bytes, content: bytes) -> bytes:
    """A JPEG with an APP1 segment of any content, as cameras write EXIF."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


#: One tag, the orientation, of another type or value than it has.
NOT_AN_ORIENTATION = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01"


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00II*\x00\x08\x00\x00\x00",
        b"Exif\x00",
        b"XX*\x00\x08\x00\x00\x00\x00\x00",
        b"II*\x00",
        b"\xff" * 40,
        NOT_AN_ORIENTATION + b"\x03\x00\x01\x00\x00\x00\x00\x00\x00\x00" + bytes(4),
        NOT_AN_ORIENTATION + b"\x03\x00\x01\x00\x00\x00\x09\x00\x00\x00" + bytes(4),
        NOT_AN_ORIENTATION + b"\x02\x00\x03\x00\x00\x00up\x00\x00" + bytes(4),
    ],
)
def test_a_picture_whose_exif_cannot_be_read_is_taken_as_it_lies(tmp_path, exif):
    image = smooth((100, 60))
    for kind, added in (("PNG", with_exif_chunk), ("JPEG", with_exif_segment)):
        plain = saved(image, kind)
        content = exif if kind == "PNG" else b"Exif\x00\x00" + exif
        expected, pixels = usable(read(tmp_path, plain))
        picture, found = usable(read(tmp_path, added(plain, content)))
        assert torch.equal(found, pixels)
        assert (picture.width, picture.height) == (100, 60)
        assert picture.changes == expected.changes == ("cropped", "upscaled")


def test_a_wide_picture_is_cropped_in_the_middle(tmp_path):
    image = solid(colour=(0, 0, 0), size=(192, 64))
    image.paste((255, 255, 255), (64, 0, 128, 64))
    _, pixels = usable(read(tmp_path, saved(image, "PNG")))
    assert pixels.shape == (3, 64, 64)
    assert float(pixels.min()) > 0.99


def bomb(width: int, height: int, kind="PNG") -> bytes:
    """A small file that unpacks to many pixels."""
    return saved(Image.new("1", (width, height)), kind)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"this is not a picture", "not a picture in one of the formats"),
        (b"", "not a picture in one of the formats"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture in one of the formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (saved(solid(size=(300, 300)), "JPEG")[:900], "damaged or cut off"),
        (saved(solid(size=(1, 1)), "PNG"), "1 × 1 pixels; each side must have at least 16"),
        (bomb(20_000, 20_000), "it has 400 million pixels; 64 million are the most"),
        (bomb(8_000, 8_100), "it has 65 million pixels; 64 million are the most"),
        (bomb(6_000, 6_000, "WEBP"), "it has 36 million pixels; 32 million are the most"),
    ],
)
def test_a_picture_that_cannot_be_used_is_said_in_a_few_words(tmp_path, body, says):
    found = read(tmp_path, body)
    assert isinstance(found, BadPicture)
    assert says in found.reason
    assert str(tmp_path) not in found.reason


def files(tmp_path, *bodies: bytes) -> list[ImageFile]:
    made = []
    for index, body in enumerate(bodies):
        path = tmp_path / f"{index:06d}"
        path.write_bytes(body)
        made.append(ImageFile(index=index, path=str(path), source=f"s3://b/{index}.jpg"))
    return made


def test_bad_pictures_are_left_out_unless_the_job_says_otherwise(tmp_path):
    mixed = files(tmp_path, saved(solid(), "PNG"), b"bad")
    pictures = Pictures(mixed, 64, "skip")
    assert [picture.file.index for picture, _ in pictures] == [0]
    assert [picture.file.index for picture in pictures.good] == [0]
    assert [picture.file.index for picture in pictures.bad] == [1]
    with pytest.raises(JobError, match=r"1 of 2 pictures cannot be used: s3://b/1\.jpg") as caught:
        list(Pictures(mixed, 64, "fail"))
    assert caught.value.code is ErrorCode.INVALID_IMAGE


def test_a_job_that_is_lost_names_every_bad_picture_and_uses_none_that_follow(tmp_path):
    bodies = [saved(solid(), "PNG"), b"bad", saved(solid(), "PNG"), b"bad"]
    reading = iter(Pictures(files(tmp_path, *bodies), 64, "fail"))
    assert next(reading)[0].file.index == 0
    with pytest.raises(JobError, match=r"2 of 4 pictures.*1\.jpg.*3\.jpg"):
        next(reading)


def test_a_job_without_any_usable_picture_fails(tmp_path):
    with pytest.raises(JobError, match=r"7 of 7 pictures.*and 2 more"):
        list(Pictures(files(tmp_path, *[b"bad"] * 7), 64, "skip"))


def smooth(size: tuple[int, int]) -> Image.Image:
    """Gradients and a soft-edged disc: what photographs have and a block of pixels has not."""
    across = numpy.linspace(0, 255, size[0])[None, :].repeat(size[1], axis=0)
    down = numpy.linspace(255, 0, size[1])[:, None].repeat(size[0], axis=1)
    wave = 127.5 + 127.5 * numpy.sin(across / 9) * numpy.cos(down / 13)
    return Image.fromarray(numpy.stack([across, down, wave], axis=-1).round().astype(numpy.uint8))


@pytest.mark.parametrize(
    ("size", "kind", "levels"),
    [((200, 150), "PNG", 0), ((1801, 1203), "PNG", 2), ((1203, 1801), "JPEG", 4)],
)
def test_a_large_picture_made_small_in_strips_looks_like_all_of_it_filtered(
    tmp_path, mocker, size, kind, levels
):
    mocker.patch("worker.training.decoding._STRIP_PIXELS", 50_000)
    image = smooth(size)
    _, pixels = usable(read(tmp_path, saved(image, kind, quality=100, subsampling=0)))
    whole = ImageOps.fit(image, (64, 64), Image.Resampling.LANCZOS)
    wanted = torch.from_numpy(numpy.array(whole, dtype=numpy.float32)).permute(2, 0, 1)
    assert float(((pixels + 1) * 127.5 - wanted).abs().max()) <= levels + 0.01


#: Reads pictures in a fresh process, and says how much more memory the later ones took than the
#: first, bytes.
MEASURE = """
import resource, sys
from worker.contract.pipe import ImageFile
from worker.training.framing import square
from worker.training.images import read_picture

def peak_after(path):
    found = read_picture(ImageFile(index=0, path=path, source="s"), square(512))
    assert isinstance(found, tuple), found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

first, *others = [peak_after(path) for path in sys.argv[1:]]
print(max(others) - first)
"""


def test_the_largest_pictures_cost_about_what_their_decoders_take(tmp_path):
    """Kilobytes that unpack to gigabytes are refused; below that no step makes a second copy."""
    (tmp_path / "small").write_bytes(saved(solid(), "PNG"))
    for mode, kind, side in (
        *(("RGBA", "PNG", 7_900), ("I;16", "PNG", 7_900)),
        *(("RGB", "JPEG", 7_900), ("RGB", "WEBP", 5_600)),
    ):
        image = solid(mode, 0, (side, side))
        options = {"compress_level": 1, "method": 0, "icc_profile": adobe_rgb()}
        image.save(tmp_path / f"{mode} {kind}", kind, **options)
    paths = sorted(map(str, tmp_path.iterdir()), key=lambda path: not path.endswith("small"))
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < 600_000_000
