"""Between a job's arrival and its first step: pictures pass one at a time, and a stop is heard."""

import weakref

import pytest
import torch

from tests.unit.training.builders import CPU, command
from worker.contract.pipe import StoppedEvent
from worker.training import images
from worker.training.base_model import BaseModelShelf, load_base_model
from worker.training.cache import encode
from worker.training.device import arithmetic_for
from worker.training.images import Pictures
from worker.training.job import run_job


@pytest.fixture
def read(mocker):
    """Pictures that were read, by index."""
    indices: list[int] = []
    original = images.read_picture

    def noted(file, *others, **named):
        indices.append(file.index)
        return original(file, *others, **named)

    mocker.patch.object(images, "read_picture", noted)
    return indices


@pytest.mark.parametrize("reason", ["drain", "cancel", "time_limit"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_job_told_to_stop_between_two_pictures_stops_there_without_a_checkpoint(
    tiny_base_model, pictures, tmp_path, read, reason, count
):
    order = command(tiny_base_model, pictures, tmp_path)
    shelf = BaseModelShelf()
    ended = run_job(
        order,
        shelf,
        CPU,
        report=lambda event: None,
        should_stop=lambda: reason if len(read) == count else None,
    )
    assert ended == StoppedEvent(reason=reason, step=0)
    assert read == list(range(count))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_job_told_to_stop_as_it_begins_does_not_load_the_base_model(
    tiny_base_model, pictures, tmp_path, mocker
):
    load = mocker.patch("worker.training.base_model.load_base_model")
    ended = run_job(
        command(tiny_base_model, pictures, tmp_path),
        BaseModelShelf(),
        CPU,
        report=lambda event: None,
        should_stop=lambda: "drain",
    )
    assert ended == StoppedEvent(reason="drain", step=0)
    load.assert_not_called()


def test_a_job_told_to_stop_after_the_last_picture_does_not_begin_to_train(
    tiny_base_model, pictures, tmp_path, mocker, read
):
    train = mocker.patch("worker.training.job.Training")
    run_job(
        command(tiny_base_model, pictures, tmp_path),
        BaseModelShelf(),
        CPU,
        report=lambda event: None,
        should_stop=lambda: "drain" if len(read) == len(pictures) else None,
    )
    train.assert_not_called()


def test_the_pixels_of_a_picture_are_gone_when_the_next_but_one_is_read(
    tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures, tmp_path)
    model = load_base_model(order.base_model, arithmetic_for("no", CPU), allow_hub=False)
    passed: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watched():
        nonlocal most
        for picture, pixels in Pictures(order.images, 64, "fail"):
            passed.append(weakref.ref(pixels))
            most = max(most, sum(one() is not None for one in passed))
            yield picture, pixels

    dataset = encode(model, watched(), mirrored=True)
    assert len(dataset.sha256) == len(pictures) == len(passed)
    assert most <= 2
