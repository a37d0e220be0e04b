"""The trainer, which reports every step, and whose second process has memory for one sample."""

import torch

from worker.training import loop, step
from worker.training.__main__ import main

run_pass = step.run_pass


def scarce(trainee, lesson, batch, share):
    if trainee.ranks.index == 1 and batch.indices.shape[1] > 1:
        raise torch.OutOfMemoryError("CUDA out of memory, on purpose")
    return run_pass(trainee, lesson, batch, share)


if __name__ == "__main__":
    loop.REPORT_SECONDS = 0
    step.run_pass = scarce
    main()
