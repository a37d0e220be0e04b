"""How the GPUs of a machine are divided among trainers."""

import pytest

from worker.jobs.devices import Share, shares


@pytest.mark.parametrize(
    ("gpus", "trainers_per_gpu", "gpus_per_trainer", "expected"),
    [
        ([], 1, 1, [Share(None)]),
        ([], 2, 1, [Share(None, trainers=2)] * 2),
        ([], 1, 2, [Share(None, processes=2)]),
        (["0", "1"], 1, 1, [Share("0"), Share("1")]),
        (["3"], 2, 1, [Share("3", trainers=2)] * 2),
        (["0", "1", "2", "5"], 1, 2, [Share("0,1", 2), Share("2,5", 2)]),
    ],
)
def test_each_gpu_belongs_to_its_trainers(gpus, trainers_per_gpu, gpus_per_trainer, expected):
    found = shares(gpus, trainers_per_gpu=trainers_per_gpu, gpus_per_trainer=gpus_per_trainer)
    assert found == expected


def test_gpus_that_would_be_left_over_are_refused():
    with pytest.raises(ValueError, match="GPUS_PER_TRAINER is 2, but 3 GPUs are visible"):
        shares(["0", "1", "2"], trainers_per_gpu=1, gpus_per_trainer=2)


def test_a_gpu_is_either_shared_or_one_of_several():
    with pytest.raises(ValueError, match="cannot both be more than 1"):
        shares(["0", "1"], trainers_per_gpu=2, gpus_per_trainer=2)
