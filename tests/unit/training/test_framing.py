"""Which part of a picture is trained on: sizes near its own ratio, parts that cover it."""

from itertools import pairwise

import numpy
import pytest
import torch
from PIL import Image

from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import ImageFile
from worker.training.framing import (
    RANDOM_CROPS,
    Cut,
    Framing,
    bucket_sizes,
    cut_at,
    framing_of,
    square,
)
from worker.training.images import BadPicture, read_picture
from worker.training.places import places


@pytest.mark.parametrize("resolution", [64, 72, 128, 256, 320, 512, 768, 1024, 2048])
def test_buckets_hold_about_the_square_s_pixels_and_never_more(resolution):
    sizes = bucket_sizes(resolution)
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % 8 == height % 8 == 0
        assert 0.75 * resolution**2 <= width * height <= resolution**2
        assert 0.24 < width / height < 4.1


def test_the_buckets_at_512_and_at_64_pixels():
    assert bucket_sizes(512) == (
        *((256, 1024), (320, 768), (384, 640), (448, 576), (512, 512)),
        *((576, 448), (640, 384), (768, 320), (1024, 256)),
    )
    assert bucket_sizes(64)[:5] == ((32, 128), (40, 96), (48, 80), (56, 72), (64, 64))


def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio_upright_or_lying():
    framing = framing_of(TrainingParameters(aspect_ratio_buckets=True), seed=1)
    assert framing.size_for(3000, 3000) == (512, 512)
    assert framing.size_for(4000, 3000) == (576, 448)
    assert framing.size_for(3000, 4000) == (448, 576)
    assert framing.size_for(1920, 1080) == (640, 384)
    assert framing.size_for(10_000, 100) == (1024, 256)


def test_without_buckets_there_is_the_square_alone():
    assert framing_of(TrainingParameters(), seed=1) == Framing(((512, 512),), 1, seed=1)
    assert square(512).size_for(1920, 1080) == (512, 512)
    assert places(square(512), 3) == (0.5,)


def test_random_parts_cover_the_picture_and_repeat():
    framing = framing_of(TrainingParameters(center_crop=False), seed=1)
    found = places(framing, 3)
    assert len(found) == RANDOM_CROPS == 4
    assert all(k / 4 <= place <= (k + 1) / 4 for k, place in enumerate(found))
    assert places(framing, 3) == found != places(framing, 4)
    other = framing_of(TrainingParameters(center_crop=False), seed=2)
    assert places(other, 3) != found


def ramp(tmp_path, width, height) -> ImageFile:
    """A picture that gets lighter to the right and down."""
    across = numpy.linspace(0, 200, width)[None, :] + numpy.linspace(0, 50, height)[:, None]
    image = Image.fromarray(across.round().astype(numpy.uint8)).convert("RGB")
    path = tmp_path / f"{width}x{height}.png"
    image.save(path)
    return ImageFile(index=0, path=str(path), source="s3://b/a.png")


def read(file, **rules):
    found = read_picture(file, framing_of(TrainingParameters(resolution=64, **rules), seed=1))
    assert not isinstance(found, BadPicture)
    return found


def test_a_picture_in_its_bucket_loses_less_than_in_a_square(tmp_path):
    file = ramp(tmp_path, 300, 200)
    picture, pixels = read(file, aspect_ratio_buckets=True)
    assert pixels.shape == (3, 48, 80)
    assert picture.changes == ("cropped",)
    _, squared = read(file)
    assert squared.shape == (3, 64, 64)
    span = [float(one[0, 0, -1] - one[0, 0, 0]) for one in (pixels, squared)]
    assert span[0] > 1.35 * span[1]


def test_a_picture_that_lies_on_its_side_gets_an_upright_bucket(tmp_path):
    image = Image.new("RGB", (300, 200))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    file = ImageFile(index=0, path=str(tmp_path / "a.jpg"), source="s3://b/a.jpg")
    picture, pixels = read(file, aspect_ratio_buckets=True)
    assert pixels.shape == (3, 80, 48)
    assert (picture.width, picture.height) == (200, 300)
    assert "rotated" in picture.changes


#: What turns an upright picture into what a camera that is held so sees (EXIF 2.3, tag 274).
SEEN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_parts_lie_at_the_same_places_however_the_camera_was_held(tmp_path, orientation, size):
    upright = ramp(tmp_path, *size)
    with Image.open(upright.path) as image:
        seen = image.transpose(SEEN[orientation])
    exif = seen.getexif()
    exif[0x0112] = orientation
    seen.save(tmp_path / "seen.png", exif=exif)
    turned = ImageFile(index=0, path=str(tmp_path / "seen.png"), source="s3://b/a.png")
    expected, parts = read(upright, center_crop=False)
    found, others = read(turned, center_crop=False)
    assert torch.allclose(parts, others, atol=2.1 / 127.5)
    assert found.cuts == expected.cuts
    assert len(set(found.cuts)) == 4


def test_a_cut_says_where_a_part_lies_in_the_picture_scaled_as_the_part_is(tmp_path):
    assert cut_at((300, 100), (64, 64), 0.5) == Cut(64, 0, 64, (64, 64))
    assert cut_at((300, 100), (64, 64), 0.0) == Cut(0, 0, 128, (64, 64))
    assert cut_at((100, 300), (64, 64), 1.0) == Cut(0, 128, 0, (64, 64))
    assert cut_at((300, 200), (80, 48), 0.5) == Cut(0, 2, 0, (80, 48))
    picture, _ = read(ramp(tmp_path, 300, 100))
    assert picture.cuts == (Cut(64, 0, 64, (64, 64)),)


def test_random_parts_lie_side_by_side_and_a_square_picture_has_one(tmp_path):
    _, parts = read(ramp(tmp_path, 300, 100), center_crop=False)
    assert parts.shape == (4, 3, 64, 64)
    left_edges = [float(part[0, 0, 0]) for part in parts]
    assert all(a < b for a, b in pairwise(left_edges))
    _, one = read(ramp(tmp_path, 100, 100), center_crop=False)
    assert one.shape == (3, 64, 64)
