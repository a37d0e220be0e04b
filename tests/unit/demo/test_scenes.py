"""Pictures drawn by a program, and what is said of them."""

import random
import re

import numpy
import pytest

from worker.demo.hatched import draw_hatched
from worker.demo.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIDE,
    SIZES,
    caption_of,
    draw_scene,
    random_scene,
    scene_of,
)

SCENES = [random_scene(random.Random(number), plain=0.5) for number in range(300)]


def test_a_caption_says_nothing_that_is_not_in_the_picture():
    for number, scene in enumerate(SCENES):
        words = caption_of(scene, random.Random(number))
        said = set(re.findall(r"[a-z]+", words))
        assert said & set(SHAPES) == {scene.shape}
        assert said & set(SIZES) <= {scene.size}
        before, _, after = words.partition(" background")[0].rpartition(" on ")
        assert set((before or after).split()) & set(COLOURS) <= {scene.colour}
        if before:
            assert set(after.split()) & set(COLOURS) <= {scene.background}
        for position in POSITIONS:
            assert not words.endswith(position) or scene.position == position


def test_captions_leave_things_out_but_never_the_shape_or_an_unusual_fill():
    captions = [caption_of(scene, random.Random(n)) for n, scene in enumerate(SCENES)]
    assert any("background" not in caption for caption in captions)
    for scene, caption in zip(SCENES, captions, strict=True):
        assert scene.shape in caption
        assert ("striped" in caption) == (scene.fill == "striped")
        assert ("dotted" in caption) == (scene.fill == "dotted")
        assert ("with a dark outline" in caption) == (scene.fill == "outlined")


def test_a_whole_caption_reads_as_a_person_would_write_it():
    scene = scene_of("star", "orange", "grey", random.Random(0), position="at the top")
    assert caption_of(scene, random.Random(0), left_out=0) == (
        "an orange star on a grey background at the top"
    )
    scene = scene_of(
        *("ring", "red", "white"), random.Random(0),
        size="small", position="on the left", fill="outlined",
    )  # fmt: skip
    assert caption_of(scene, random.Random(0), left_out=0) == (
        "a small red ring with a dark outline on a white background on the left"
    )


def test_shapes_lie_inside_of_the_picture_and_have_the_colours_of_their_names():
    for scene in SCENES[:100]:
        pixels = numpy.asarray(draw_scene(scene), dtype=int)
        assert pixels.shape == (SIDE, SIDE, 3)
        edge = numpy.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == scene.paper).all()
        assert numpy.abs(numpy.subtract(scene.paper, COLOURS[scene.background])).max() <= 8
        assert numpy.abs(numpy.subtract(scene.ink, COLOURS[scene.colour])).max() <= 8


def test_edges_are_smooth():
    scene = scene_of("circle", "black", "white", random.Random(0))
    assert len(numpy.unique(numpy.asarray(draw_scene(scene))[..., 0])) > 8


def test_equal_random_numbers_draw_equal_pictures():
    first, again = (random_scene(random.Random(7)) for _ in range(2))
    assert first == again
    assert draw_scene(first).tobytes() == draw_scene(again).tobytes()


@pytest.mark.parametrize("count", [8, 10])
def test_the_pictures_of_the_style_show_every_shape_and_say_which(tmp_path, count):
    paths = draw_hatched(tmp_path / "a", count)
    captions = [path.with_suffix(".txt").read_text().strip() for path in paths]
    assert {caption.split()[-1] for caption in captions} == set(SHAPES)
    again = draw_hatched(tmp_path / "b", count)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
