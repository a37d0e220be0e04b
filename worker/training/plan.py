"""How many steps, in which batches, with or without checkpointing? Pure, said before the first."""

import math
from dataclasses import dataclass

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters

_GIB = 2**30

#: Memory of Stable Diffusion 1.5's UNet training apart from weights and activations, bytes:
#: context, workspace, and the adapter with its optimizer state.
_FIXED_BYTES = int((0.5 + 1.0 + 0.06) * _GIB)

#: The UNet's weights in half precision, bytes.
_WEIGHTS_BYTES = int(1.60 * _GIB)

#: Activations of one 512 × 512 sample without checkpointing, bytes, autocast with fp32 norms.
_SAVED_BYTES_AT_512 = int(1.41 * _GIB)

#: Share of the GPU's memory that is planned with.
_USABLE = 0.9


@dataclass(frozen=True)
class Plan:
    """The bill before the first step.

    Attributes:
        pictures: how many are trained on. micro_batch: pictures in one forward pass.
        accumulation: micro-batches in one optimizer step.
        steps_per_epoch, total_steps, total_epochs: optimizer steps and passes.
        gradient_checkpointing: whether activations are recomputed.
    """

    pictures: int
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    total_epochs: int
    gradient_checkpointing: bool

    @property
    def group_size(self) -> int:
        """Pictures in one full optimizer step."""
        return self.micro_batch * self.accumulation

    def epoch_of(self, steps_done: int) -> int:
        """The pass that `steps_done` optimizer steps have reached, from 1."""
        return min(self.total_epochs, max(0, steps_done - 1) // self.steps_per_epoch + 1)


def make_plan(parameters: TrainingParameters, pictures: int, *, device_memory_bytes: int) -> Plan:
    """Plan a job on `pictures` usable pictures.

    Args:
        parameters: the job's.
        pictures: how many can be used.
        device_memory_bytes: the GPU's; 0 for a CPU, which needs no checkpointing.

    Raises:
        JobError: `INVALID_JOB`, the batch is larger than the number of pictures.
    """
    batch = parameters.train_batch_size
    if batch > pictures:
        raise JobError(
            ErrorCode.INVALID_JOB,
            f"parameters.train_batch_size is {batch}, but only {pictures} of the pictures can be "
            "used; send a smaller batch or more pictures.",
        )
    per_epoch = math.ceil(pictures / (batch * parameters.gradient_accumulation_steps))
    total = parameters.max_train_steps or per_epoch * parameters.num_train_epochs
    return Plan(
        pictures=pictures,
        micro_batch=batch,
        accumulation=parameters.gradient_accumulation_steps,
        steps_per_epoch=per_epoch,
        total_steps=total,
        total_epochs=math.ceil(total / per_epoch),
        gradient_checkpointing=_checkpointing(parameters, device_memory_bytes),
    )


def estimated_bytes(resolution: int, micro_batch: int, *, full_precision: bool = False) -> int:
    """GPU memory that Stable Diffusion 1.5 needs to train without checkpointing, bytes.

    Weights and activations take twice as much in full precision.
    """
    saved = int(micro_batch * _SAVED_BYTES_AT_512 * (resolution / 512) ** 2)
    return _FIXED_BYTES + (_WEIGHTS_BYTES + saved) * (2 if full_precision else 1)


def _checkpointing(parameters: TrainingParameters, device_memory_bytes: int) -> bool:
    if parameters.gradient_checkpointing != "auto":
        return parameters.gradient_checkpointing
    if device_memory_bytes == 0:
        return False
    needed = estimated_bytes(
        parameters.resolution,
        parameters.train_batch_size,
        full_precision=parameters.mixed_precision == "no",
    )
    return needed > device_memory_bytes * _USABLE
