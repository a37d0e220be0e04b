"""Accelerate, AdamW and the learning-rate schedule of one job."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.optimization import get_scheduler

from worker.contract.parameters import TrainingParameters
from worker.training.device import Arithmetic


def new_accelerator(arithmetic: Arithmetic) -> Accelerator:
    """An accelerator for one job.

    Accelerate keeps its state for the whole process; it is reset, so that a job may have another
    precision than the one before. Accumulation is the loop's own: Accelerate would divide by the
    full number even in a shorter last group.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(mixed_precision=arithmetic.precision, cpu=arithmetic.device.type == "cpu")


def new_optimizer(
    accelerator: Accelerator, weights: list[torch.nn.Parameter], parameters: TrainingParameters
) -> Any:
    """AdamW on `weights`, wrapped by Accelerate, fused on a GPU."""
    return accelerator.prepare(
        torch.optim.AdamW(
            weights,
            lr=parameters.learning_rate,
            betas=(parameters.adam_beta1, parameters.adam_beta2),
            weight_decay=parameters.adam_weight_decay,
            eps=parameters.adam_epsilon,
            fused=weights[0].device.type == "cuda",
        )
    )


def new_scheduler(optimizer: Any, parameters: TrainingParameters, total_steps: int) -> Any:
    """The schedule, stepped by the loop once an optimizer step that was not skipped."""
    return get_scheduler(
        parameters.lr_scheduler,
        optimizer=optimizer.optimizer,
        num_warmup_steps=parameters.lr_warmup_steps,
        num_training_steps=total_steps,
    )
