"""What parity in fp32 differs by is rounding: in double precision it all but goes away."""

import dataclasses

import pytest
import torch

from tests.unit.training import test_parity as parity
from tests.unit.training.builders import build, command, largest_difference
from worker.training.cache import encode
from worker.training.images import Pictures


class DoublePictures(Pictures):
    def __iter__(self):
        for picture, pixels in super().__iter__():
            yield picture, pixels.double()


def build_in_double(order):
    model, trainee, lesson = build(order)
    for part in (model.unet, model.vae, model.text_encoder):
        part.double()
    pictures = DoublePictures(order.images, order.parameters.resolution, "fail")
    return (
        model,
        trainee,
        dataclasses.replace(lesson, dataset=encode(model, pictures, mirrored=False)),
    )


@pytest.fixture
def in_double(mocker):
    mocker.patch.object(parity, "build", build_in_double)
    mocker.patch.object(parity, "Pictures", DoublePictures)


@pytest.mark.usefixtures("in_double")
def test_a_batch_of_two_with_adamws_own_epsilon_gives_the_reference_weights(
    tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures[:4], tmp_path, **parity.RULES, train_batch_size=2)
    start, trained = parity.ours(order)
    assert {weight.dtype for weight in trained.values()} == {torch.float64}
    assert largest_difference(start, trained) > 1e-3
    # The loss is taken in fp32 and the noise tables are fp32, on our side; the rest is double.
    assert largest_difference(trained, parity.reference(order)) < 5e-7
