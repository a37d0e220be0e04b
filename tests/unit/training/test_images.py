"""Whatever a stranger's picture file is: upright RGB of the right colours, or a sentence."""

from io import BytesIO
from pathlib import Path

import numpy
import pytest
from PIL import Image

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile
from worker.training.images import BadPicture, Picture, read_picture, read_pictures

RED = (200, 30, 40)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def solid(mode="RGB", colour=RED, size=(80, 60)) -> Image.Image:
    return Image.new(mode, size, colour)


def read(tmp_path: Path, body: bytes, resolution=64) -> Picture | BadPicture:
    path = tmp_path / "000000"
    path.write_bytes(body)
    return read_picture(ImageFile(index=0, path=str(path), source="s3://b/a.jpg"), resolution)


def colour_of(picture: Picture | BadPicture) -> tuple[int, ...]:
    """The colour in the middle, 0 … 255."""
    assert isinstance(picture, Picture), picture
    side = picture.pixels.shape[-1]
    middle = picture.pixels[:, side // 2, side // 2]
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


def test_a_rotated_picture_is_turned_upright(tmp_path):
    image = solid(colour=(0, 0, 0), size=(100, 60))
    image.paste((255, 255, 255), (0, 0, 100, 20))  # white on top, as the sensor saw it
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned clockwise: white is on the right
    picture = read(tmp_path, saved(image, "JPEG", exif=exif, quality=95))
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (60, 100)
    assert float(picture.pixels[:, 32, -4].mean()) > 0.9
    assert float(picture.pixels[:, 32, 4].mean()) < -0.9


def test_a_wide_picture_is_cropped_in_the_middle(tmp_path):
    image = solid(colour=(0, 0, 0), size=(192, 64))
    image.paste((255, 255, 255), (64, 0, 128, 64))
    picture = read(tmp_path, saved(image, "PNG"))
    assert isinstance(picture, Picture)
    assert picture.pixels.shape == (3, 64, 64)
    assert float(picture.pixels.min()) > 0.99


def bomb() -> bytes:
    return saved(Image.new("1", (20_000, 20_000)), "PNG")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"this is not a picture", "not a picture in one of the formats"),
        (b"", "not a picture in one of the formats"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture in one of the formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (saved(solid(size=(300, 300)), "JPEG")[:900], "damaged or cut off"),
        (saved(solid(size=(1, 1)), "PNG"), "1 × 1 pixels; each side must have at least 16"),
        (bomb(), "too many"),
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
    good, bad = read_pictures(mixed, 64, "skip")
    assert ([p.file.index for p in good], [b.file.index for b in bad]) == ([0], [1])
    with pytest.raises(JobError, match=r"1 of 2 pictures cannot be used: s3://b/1\.jpg") as caught:
        read_pictures(mixed, 64, "fail")
    assert caught.value.code is ErrorCode.INVALID_IMAGE


def test_a_job_without_any_usable_picture_fails(tmp_path):
    with pytest.raises(JobError, match=r"7 of 7 pictures.*and 2 more"):
        read_pictures(files(tmp_path, *[b"bad"] * 7), 64, "skip")
