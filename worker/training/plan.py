"""How many steps, in which batches, launched how? Pure, said before the first step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import StepLaunch
from worker.training.families.memory import DenoiserMemory

#: Share of the free memory that is planned with.
_USABLE = 0.9

#: Micro-batches of a job from which on recording the step once as a CUDA graph pays.
_WORTH_RECORDING = 100


@dataclass(frozen=True)
class Plan:
    """The bill before the first step.

    Attributes:
        pictures: how many are trained on. group_size: pictures in one full optimizer step.
        batch_size: pictures in one full batch, all of one bucket.
        micro_batch: samples in one forward pass.
        samples_each: samples for each picture: 2 where one of the class goes beside it.
        steps_per_epoch, total_steps, total_epochs: optimizer steps and passes.
        gradient_checkpointing: whether activations are recomputed.
        may_checkpoint: whether they may be where memory does not suffice otherwise.
        recorded: whether the step is recorded as a CUDA graph.
        compiled: whether the UNet's repeated blocks are compiled.
        estimated_bytes: of GPU memory on top of the base model; 0 on a CPU.
        free_bytes: of GPU memory beside the base model; 0 on a CPU.
    """

    pictures: int
    group_size: int
    batch_size: int
    micro_batch: int
    steps_per_epoch: int
    total_steps: int
    total_epochs: int
    gradient_checkpointing: bool
    may_checkpoint: bool
    recorded: bool
    compiled: bool
    estimated_bytes: int
    free_bytes: int
    samples_each: int = 1

    @property
    def accumulation(self) -> int:
        """Micro-batches in one full optimizer step."""
        return math.ceil(self.group_size * self.samples_each / self.micro_batch)

    def smaller(self) -> "Plan | None":
        """The plan for when this one ran out of memory.

        Half the micro-batch, down to one sample; then without the recording, which holds its memory
        between the steps; then checkpointing. The pictures of an optimizer step stay the same. None
        if nothing is left to try.
        """
        if self.micro_batch > 1:
            return replace(self, micro_batch=self.micro_batch // 2)
        if self.recorded:
            return replace(self, recorded=False)
        if not self.gradient_checkpointing and self.may_checkpoint:
            return replace(self, gradient_checkpointing=True)
        return None

    def ended_at(self, step: int) -> "Plan":
        """The plan of a training that ends after `step` optimizer steps."""
        return replace(self, total_steps=step, total_epochs=math.ceil(step / self.steps_per_epoch))

    def epoch_of(self, steps_done: int) -> int:
        """The pass that `steps_done` optimizer steps have reached, from 1."""
        return min(self.total_epochs, max(0, steps_done - 1) // self.steps_per_epoch + 1)


def make_plan(
    parameters: TrainingParameters,
    pictures: int,
    *,
    memory: DenoiserMemory,
    free_bytes: int,
    launch: StepLaunch = "auto",
    processes: int = 1,
    buckets: Sequence[int] | None = None,
) -> Plan:
    """Plan a job on `pictures` usable pictures.

    Args:
        parameters: the job's.
        pictures: how many are trained on.
        memory: what the base model's family takes.
        free_bytes: the GPU's memory that is free beside the base model; 0 for a CPU, where memory
            is not planned.
        launch: how steps are launched; `auto` records long enough jobs on a GPU.
        processes: how many share the micro-batches of a step.
        buckets: how many pictures each bucket has; by default all are in one. Each fills its own
            batches, so that every bucket may have a shorter last one.

    Raises:
        JobError: `INVALID_JOB`, the batch is larger than the number of pictures.
    """
    batch = parameters.train_batch_size
    if batch > pictures:
        raise JobError(
            ErrorCode.INVALID_JOB,
            f"parameters.train_batch_size is {batch}, but only {pictures} of the pictures can be "
            "trained on; send a smaller batch or more pictures.",
        )
    group = batch * parameters.gradient_accumulation_steps
    batches = sum(math.ceil(size / batch) for size in buckets or [pictures])
    per_epoch = math.ceil(batches / parameters.gradient_accumulation_steps)
    total = steps_asked_for(parameters, per_epoch)
    each = 2 if parameters.with_prior_preservation else 1
    micro_batch, checkpointing = _fitting(
        parameters, memory, math.ceil(batch * each / processes), free_bytes
    )
    passes = total * math.ceil(group * each / micro_batch / processes)
    worth = launch == "graph" or (launch == "auto" and passes >= _WORTH_RECORDING)
    return Plan(
        pictures=pictures,
        group_size=group,
        batch_size=batch,
        micro_batch=micro_batch,
        steps_per_epoch=per_epoch,
        total_steps=total,
        total_epochs=math.ceil(total / per_epoch),
        gradient_checkpointing=checkpointing,
        may_checkpoint=parameters.gradient_checkpointing is not False,
        # A recording cannot hold the random state that checkpointing saves and puts back.
        recorded=worth and free_bytes > 0 and not checkpointing,
        # A compiler would take DoRA's weights, which are made anew at each pass, for constants.
        compiled=launch == "compile" and not parameters.use_dora,
        estimated_bytes=memory.training_bytes(parameters, micro_batch, checkpointing=checkpointing)
        if free_bytes
        else 0,
        free_bytes=free_bytes,
        samples_each=each,
    )


def steps_asked_for(parameters: TrainingParameters, steps_per_epoch: int) -> int:
    """Optimizer steps of a job that nothing ends early."""
    return parameters.max_train_steps or steps_per_epoch * parameters.num_train_epochs


def _fitting(
    parameters: TrainingParameters, memory: DenoiserMemory, batch: int, free_bytes: int
) -> tuple[int, bool]:
    """Micro-batch of at most `batch`, and checkpointing: the first that fits, or the least.

    A smaller micro-batch comes before checkpointing, which costs a third more arithmetic.
    """
    asked = parameters.gradient_checkpointing
    choices = (False, True) if asked == "auto" else (asked,)
    if not free_bytes:
        return batch, choices[0]
    for checkpointing in choices:
        micro_batch = batch
        while micro_batch:
            needed = memory.training_bytes(parameters, micro_batch, checkpointing=checkpointing)
            if needed <= free_bytes * _USABLE:
                return micro_batch, checkpointing
            micro_batch //= 2
    return 1, choices[-1]
