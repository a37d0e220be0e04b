"""The weights that come with the package: they draw what they are told."""

import pytest

from worker.demo.classifier import classify
from worker.demo.drawing_base import DRAWING_MODEL, load_drawing_model, plain_prompts, sample

#: Samples of the test; `python -m benchmarks.drawing` draws 200.
SAMPLES = 24


@pytest.fixture(scope="module")
def pipeline():
    return load_drawing_model()


def test_it_draws_the_shape_in_its_colour_on_its_background(pipeline):
    prompts = plain_prompts(SAMPLES, seed=7)
    pictures = sample(pipeline, [prompt for prompt, *_ in prompts], seed=700)
    seen = [classify(picture) for picture in pictures]
    right = [
        (s.shape, s.colour, s.background) == (shape, colour, background)
        for s, (_, shape, colour, background) in zip(seen, prompts, strict=True)
    ]
    assert sum(right) >= 0.75 * SAMPLES, seen


def test_a_sample_does_not_depend_on_those_beside_it(pipeline):
    prompts = ["a red circle on a white background", "a blue star on a yellow background"]
    both = sample(pipeline, prompts, seed=1, steps=4)
    alone = sample(pipeline, prompts[1:], seed=2, steps=4)
    difference = max(
        abs(one - other) for one, other in zip(both[1].tobytes(), alone[0].tobytes(), strict=True)
    )
    assert difference <= 2


def test_it_is_at_most_12_megabytes_with_card_and_licence():
    files = [path for path in DRAWING_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    card = (DRAWING_MODEL / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Apache License" in (DRAWING_MODEL / "LICENSE").read_text()
