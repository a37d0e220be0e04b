"""What parity in fp32 differs by is rounding: in double precision it all but goes away."""

import torch

from tests.unit.training import test_parity as parity
from tests.unit.training.builders import command, largest_difference


def test_a_batch_of_two_with_adamws_own_epsilon_gives_the_reference_weights(
    tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures[:4], tmp_path, **parity.RULES, train_batch_size=2)
    start, trained = parity.ours(order, double=True)
    assert {weight.dtype for weight in trained.values()} == {torch.float64}
    assert largest_difference(start, trained) > 1e-3
    # The loss is taken in fp32 and the noise tables are fp32, on our side; the rest is double.
    assert largest_difference(trained, parity.reference(order, double=True)) < 5e-7
