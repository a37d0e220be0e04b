"""A job that leaves pictures out is the job without them: so its manifest can be trained again."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.fixtures.drawn_pictures import draw_pictures
from tests.unit.training.builders import command, digests, load, run
from worker.contract.pipe import TrainCommand
from worker.training import images as reading
from worker.training.material import gather

#: Whatever of a training follows from which pictures there are, and in which order.
RULES = {
    "center_crop": False,
    "random_flip": True,
    "shuffle_captions": True,
    "max_train_steps": 3,
    "validation_prompts": None,
}
PRIOR = {"with_prior_preservation": True, "class_prompt": "a shape"}


@pytest.fixture(autouse=True)
def _few_steps_of_the_sampler_and_few_orders(mocker):
    mocker.patch("worker.training.drawing.STEPS", 3)
    # For two captions three orders each, for three only two.
    mocker.patch("worker.training.captions._MOST_TEXTS", 6)


@pytest.fixture
def broken(tmp_path) -> Path:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    return path


@pytest.fixture
def wide(tmp_path) -> list[Path]:
    """Four pictures whose random parts differ."""
    paths = draw_pictures(tmp_path / "drawn", 4, size=128)
    for path in paths:
        with Image.open(path) as image:
            image.crop((0, 0, 128, 70)).save(path)
    return paths


def job(model, pictures, folder, class_pictures=(), **more) -> TrainCommand:
    """The words of a picture are its own, wherever it stands in the message."""
    order = command(model, pictures, folder, class_pictures=class_pictures, **{**RULES, **more})
    images = [
        image.model_copy(update={"caption": f"{Path(image.path).stem}, ink, night, sea"})
        for image in order.images
    ]
    return order.model_copy(update={"images": images})


def gathered(order: TrainCommand):
    return gather(order, load(order), order.images, order.class_images)


def test_the_parts_and_words_are_those_of_the_job_without_them(
    tiny_base_model, wide, broken, tmp_path
):
    with_it, without = (
        gathered(job(tiny_base_model, images, tmp_path / name, of_class, **PRIOR)).dataset
        for name, images, of_class in (
            ("a", [broken, *wide[:2]], [broken, *wide[2:]]),
            ("b", wide[:2], wide[2:]),
        )
    )
    assert with_it.sha256 == without.sha256
    assert with_it.orders == without.orders
    for one, other in zip(with_it.buckets, without.buckets, strict=True):
        assert one.pictures == other.pictures
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.std, other.std)


def test_parts_of_a_job_without_any_lie_where_its_messages_order_puts_them(
    tiny_base_model, wide, tmp_path, mocker
):
    places = mocker.spy(reading, "places")
    gathered(job(tiny_base_model, wide[:2], tmp_path, wide[2:], **PRIOR))
    assert [call.args[1] for call in places.call_args_list] == [0, 1, 2, 3]


def test_the_adapter_and_its_previews_are_those_of_the_job_without_them(
    tiny_base_model, wide, broken, tmp_path
):
    with_it, _ = run(job(tiny_base_model, [broken, *wide[:2]], tmp_path / "a"))
    without, _ = run(job(tiny_base_model, wide[:2], tmp_path / "b"))
    prompts = [[one["prompt"] for one in some.metadata["previews"]] for some in (with_it, without)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 2
    assert digests(with_it) == digests(without)
