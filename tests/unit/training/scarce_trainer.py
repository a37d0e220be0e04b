"""The trainer, whose second process has memory for one sample at a time."""

import os

import torch

from worker.training import step
from worker.training.__main__ import main

run_pass = step.run_pass


def scarce(trainee, lesson, batch, share):
    if trainee.ranks.index == 1 and batch.indices.shape[1] > 1:
        raise torch.OutOfMemoryError("CUDA out of memory, on purpose")
    return run_pass(trainee, lesson, batch, share)


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    step.run_pass = scarce
    main()
