"""How near pictures are to a style."""

import random

import pytest
from PIL import Image

from worker.demo.hatched import hatched
from worker.demo.scenes import SHAPES, draw_scene, random_scene
from worker.demo.style import moved, style_of


def plain(count, seed):
    scenes = (random_scene(random.Random(f"{seed}:{number}")) for number in range(count))
    return [draw_scene(scene) for scene in scenes]


def in_style(count, seed):
    return [
        hatched(SHAPES[number % len(SHAPES)], random.Random(f"{seed}:{number}"))
        for number in range(count)
    ]


def test_the_tables_are_shares():
    style = style_of(plain(3, 0))
    assert style.colours.sum() == pytest.approx(1)
    assert style.edges.sum() == pytest.approx(1)


def test_other_pictures_of_the_style_are_there_and_other_plain_ones_have_not_moved():
    base, training = style_of(plain(24, 0)), style_of(in_style(10, 0))
    there = moved(base, style_of(in_style(24, 1)), training)
    assert min(there.style, there.colours) > 0.9
    assert there.edges > 0.8
    assert abs(moved(base, style_of(plain(24, 1)), training).style) < 0.15


def test_nothing_learned_is_nothing_moved():
    base, training = style_of(plain(8, 0)), style_of(in_style(8, 0))
    still = moved(base, base, training)
    assert (still.style, still.colours, still.edges) == (0, 0, 0)
    assert still.adapted == still.base > 0.3


def test_paper_alone_moves_colours_and_not_edges():
    base, training = style_of(plain(16, 0)), style_of(in_style(8, 0))
    paper = [Image.new("RGB", (128, 128), in_style(1, 0)[0].getpixel((0, 0)))] * 4
    only_paper = moved(base, style_of(paper), training)
    assert only_paper.colours > 0.5
    assert only_paper.edges < 0.2


def test_a_slightly_different_shade_is_a_small_difference():
    papers = [style_of([Image.new("RGB", (64, 64), (200, level, 100))]) for level in (100, 104)]
    other = style_of([Image.new("RGB", (64, 64), (20, 200, 220))])
    assert moved(other, papers[1], papers[0]).colours > 0.9


def test_directions_of_lines_count():
    lines = Image.new("L", (128, 128), 255)
    for offset in range(0, 128, 8):
        lines.paste(0, (0, offset, 128, offset + 3))
    across, along = style_of([lines]), style_of([lines.transpose(Image.Transpose.ROTATE_90)])
    turned = moved(across, along, along)
    assert turned.edges == 1
    assert turned.base > 0.15
    assert turned.colours == 0  # they were the same before
