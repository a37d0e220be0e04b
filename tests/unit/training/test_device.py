"""What a machine trains on, and in which precision."""

import pytest
import torch

from worker.training import fitness
from worker.training.device import arithmetic_for

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(mocker):
    """Makes the first GPU one of a compute capability, of which torch emulates bf16 below 8."""

    def make(major):
        mocker.patch.object(torch.cuda, "is_available", return_value=True)
        mocker.patch.object(torch.cuda, "current_device", return_value=0)
        properties = mocker.patch.object(torch.cuda, "get_device_properties")
        properties.return_value.major = major
        mocker.patch.object(torch.cuda, "_check_bf16_tensor_supported", return_value=True)

    return make


@pytest.mark.parametrize(
    ("major", "requested", "used", "dtype"),
    [
        (7, "bf16", "fp16", torch.float16),
        (7, "fp16", "fp16", torch.float16),
        (7, "no", "no", torch.float32),
        (8, "bf16", "bf16", torch.bfloat16),
        (9, "fp16", "fp16", torch.float16),
    ],
)
def test_bf16_is_for_gpus_that_compute_in_it_and_fp16_for_those_that_would_emulate_it(
    gpu, major, requested, used, dtype
):
    gpu(major)
    found = arithmetic_for(requested, GPU)
    assert (found.precision, found.base_dtype) == (used, dtype)
    assert bool(found.reason) == (used != requested)


@pytest.mark.parametrize(("major", "half"), [(7, torch.float16), (8, torch.bfloat16)])
def test_a_gpu_is_tried_in_the_precision_that_it_trains_in(gpu, mocker, major, half):
    gpu(major)
    tried = []
    mocker.patch.object(torch.cuda, "mem_get_info", return_value=(1, 2))
    mocker.patch.object(torch.cuda, "get_device_name", return_value="a GPU")
    mocker.patch.object(fitness, "_multiplies", lambda dtype: tried.append(dtype) or True)
    assert fitness.try_gpu()["ok"]
    assert tried == [torch.float32, half]
