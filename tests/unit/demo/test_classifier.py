"""The classifier finds what was drawn."""

import random

import numpy
import pytest
from PIL import Image, ImageFilter

from worker.demo.classifier import classify, colour_name
from worker.demo.hatched import hatched
from worker.demo.scenes import COLOURS, SHAPES, draw_scene, random_scene, scene_of


def test_it_names_at_least_99_percent_of_600_drawn_scenes_right():
    scenes = [random_scene(random.Random(f"classifier:{number}")) for number in range(600)]
    wrong = dict.fromkeys(("shape", "colour", "background", "size", "position"), 0)
    for scene in scenes:
        seen = classify(draw_scene(scene))
        for name in wrong:
            wrong[name] += getattr(seen, name) != getattr(scene, name)
    assert max(wrong.values()) <= 6, wrong


@pytest.mark.parametrize("shape", SHAPES)
def test_it_finds_hatched_outlines(shape):
    pictures = [hatched(shape, random.Random(number)) for number in range(5)]
    assert [classify(picture).shape for picture in pictures] == [shape] * 5


def test_it_forgives_blur_and_noise():
    draws = numpy.random.default_rng(0)
    right = 0
    for number in range(40):
        scene = random_scene(random.Random(number), plain=1)
        soft = draw_scene(scene).filter(ImageFilter.GaussianBlur(1))
        noisy = numpy.asarray(soft) + draws.normal(0, 8, (128, 128, 3))
        seen = classify(Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)))
        right += (seen.shape, seen.colour) == (scene.shape, scene.colour)
    assert right >= 38


def test_nothing_is_called_nothing():
    seen = classify(Image.new("RGB", (128, 128), COLOURS["green"]))
    assert (seen.shape, seen.colour, seen.background) == (None, None, "green")


def test_what_is_like_no_shape_is_called_none():
    draws = numpy.random.default_rng(1)
    noise = Image.fromarray(draws.integers(0, 255, (128, 128, 3), dtype=numpy.uint8))
    assert classify(noise).shape is None
    crossed = Image.new("RGB", (128, 128), "white")
    crossed.paste("black", (20, 60, 108, 64))
    crossed.paste("black", (30, 20, 34, 108))
    assert classify(crossed).shape is None


@pytest.mark.parametrize("colour", COLOURS)
def test_shades_of_a_colour_have_its_name(colour):
    rng = random.Random(0)
    for _ in range(20):
        shade = scene_of("circle", colour, "white", rng).ink
        assert colour_name(numpy.array(shade, dtype=float)) == colour


def test_pictures_of_other_sizes_are_seen_too():
    scene = scene_of("heart", "red", "white", random.Random(0))
    assert classify(draw_scene(scene, side=256)).shape == "heart"
