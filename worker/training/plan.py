"""How many steps, in which batches, launched how? Pure, said before the first step."""

import math
from dataclasses import dataclass, replace

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TARGET_PRESETS, TrainingParameters
from worker.contract.pipe import StepLaunch

_GIB = 2**30

#: Memory of training Stable Diffusion 1.5's UNet beside weights, adapter and activations, bytes:
#: workspace. The context is there before.
_FIXED_BYTES = int(1.0 * _GIB)

#: Weights of Stable Diffusion 1.5's adapter for each rank: attention alone, and with feed-forward.
#: For other layers, which a message may name, the larger number is taken.
_WEIGHTS_A_RANK = {"attn": 199_296, "attn-mlp": 374_016}

#: The same of its text encoder, and what that keeps of a caption for the backward pass, in fp32.
_TEXT_WEIGHTS_A_RANK, _TEXT_SAVED_BYTES = 73_728, int(0.04 * _GIB)

#: Bytes for each weight of the adapter: itself, its gradient and a recorded step's copy of that, 4
#: each, and what the optimizer keeps.
_BYTES_A_WEIGHT = {"adamw": 12 + 8, "adamw8bit": 12 + 2, "prodigy": 12 + 16, "adafactor": 12 + 4}

#: What the forward pass of one sample keeps for the backward pass in half precision, GiB: some, and
#: so much for each 512 × 512 pixels. Counted by `python -m benchmarks.counted`.
_SAVED_GIB = 0.01
_SAVED_GIB_AT_512 = {
    "attn": {"plain": 0.75, "dropout": 0.90, "checkpointing": 0.14},
    "attn-mlp": {"plain": 0.87, "dropout": 1.07, "checkpointing": 0.14},
    "dora": {"plain": 1.36, "dropout": 1.55, "checkpointing": 0.14},
    "dora-mlp": {"plain": 2.16, "dropout": 2.60, "checkpointing": 0.14},
}

#: What DoRA's forward pass keeps of the weights, however many samples and pixels there are, GiB.
_SAVED_OF_WEIGHTS_GIB = {
    "dora": {"plain": 0.38, "dropout": 0.66, "checkpointing": 0.0},
    "dora-mlp": {"plain": 1.17, "dropout": 2.01, "checkpointing": 0.0},
}

#: What the backward pass of one sample needs at 512 × 512 on top of that, half precision, bytes.
_BACKWARD_BYTES_AT_512 = int(0.10 * _GIB)

#: Share of the free memory that is planned with.
_USABLE = 0.9

#: Micro-batches of a job from which on recording the step once as a CUDA graph pays.
_WORTH_RECORDING = 100


@dataclass(frozen=True)
class Plan:
    """The bill before the first step.

    Attributes:
        pictures: how many are trained on. group_size: pictures in one full optimizer step.
        micro_batch: pictures in one forward pass.
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

    @property
    def accumulation(self) -> int:
        """Micro-batches in one full optimizer step."""
        return math.ceil(self.group_size / self.micro_batch)

    def smaller(self) -> "Plan | None":
        """The plan for when this one ran out of memory: half the micro-batch, then checkpointing.

        The pictures of an optimizer step stay the same. None if nothing is left to try.
        """
        if self.micro_batch > 1:
            return replace(self, micro_batch=self.micro_batch // 2)
        if not self.gradient_checkpointing and self.may_checkpoint:
            return replace(self, gradient_checkpointing=True, recorded=False)
        return None

    def epoch_of(self, steps_done: int) -> int:
        """The pass that `steps_done` optimizer steps have reached, from 1."""
        return min(self.total_epochs, max(0, steps_done - 1) // self.steps_per_epoch + 1)


def make_plan(
    parameters: TrainingParameters, pictures: int, *, free_bytes: int, launch: StepLaunch = "auto"
) -> Plan:
    """Plan a job on `pictures` usable pictures.

    Args:
        parameters: the job's.
        pictures: how many can be used.
        free_bytes: the GPU's memory that is free beside the base model; 0 for a CPU, where memory
            is not planned.
        launch: how steps are launched; `auto` records long enough jobs on a GPU.

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
    group = batch * parameters.gradient_accumulation_steps
    per_epoch = math.ceil(pictures / group)
    total = parameters.max_train_steps or per_epoch * parameters.num_train_epochs
    micro_batch, checkpointing = _fitting(parameters, free_bytes)
    passes = total * math.ceil(group / micro_batch)
    worth = launch == "graph" or (launch == "auto" and passes >= _WORTH_RECORDING)
    return Plan(
        pictures=pictures,
        group_size=group,
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
        estimated_bytes=needed_bytes(parameters, micro_batch, checkpointing) if free_bytes else 0,
        free_bytes=free_bytes,
    )


def needed_bytes(parameters: TrainingParameters, micro_batch: int, checkpointing: bool) -> int:
    """GPU memory that training needs beside Stable Diffusion 1.5's weights, bytes.

    What is kept and computed takes twice as much in full precision.
    """
    full_precision = parameters.mixed_precision == "no"
    dropout, kind = parameters.lora_dropout > 0, adapter_kind(parameters)
    saved = saved_bytes(
        parameters.resolution,
        adapter=kind,
        dropout=dropout,
        checkpointing=checkpointing,
        full_precision=full_precision,
    )
    backward = _BACKWARD_BYTES_AT_512 * (parameters.resolution / 512) ** 2
    per_sample = saved + int(backward * (2 if full_precision else 1))
    per_sample += _TEXT_SAVED_BYTES if parameters.train_text_encoder else 0
    once = saved_of_weights_bytes(kind, dropout=dropout, checkpointing=checkpointing)
    return _FIXED_BYTES + adapter_bytes(parameters) + once + micro_batch * per_sample


def adapter_kind(parameters: TrainingParameters) -> str:
    """`attn` or `attn-mlp`, and `dora` or `dora-mlp`: by what memory is estimated."""
    attention_alone = set(parameters.target_modules) <= set(TARGET_PRESETS["attn"])
    if parameters.use_dora:
        return "dora" if attention_alone else "dora-mlp"
    return "attn" if attention_alone else "attn-mlp"


def adapter_bytes(parameters: TrainingParameters) -> int:
    """The adapter's weights with gradient and optimizer state, for Stable Diffusion 1.5."""
    layers = "attn-mlp" if adapter_kind(parameters).endswith("-mlp") else "attn"
    a_rank = _WEIGHTS_A_RANK[layers]
    a_rank += _TEXT_WEIGHTS_A_RANK if parameters.train_text_encoder else 0
    return a_rank * parameters.rank * _BYTES_A_WEIGHT[parameters.optimizer]


def saved_bytes(
    resolution: int, *, adapter: str, dropout: bool, checkpointing: bool, full_precision: bool
) -> int:
    """What one sample keeps between forward and backward pass of Stable Diffusion 1.5, bytes.

    `adapter` is as `adapter_kind` says it.
    """
    mode = _mode(dropout=dropout, checkpointing=checkpointing)
    saved = _SAVED_GIB + _SAVED_GIB_AT_512[adapter][mode] * (resolution / 512) ** 2
    return int(saved * _GIB) * (2 if full_precision else 1)


def saved_of_weights_bytes(adapter: str, *, dropout: bool, checkpointing: bool) -> int:
    """What a pass keeps of the weights, whatever the samples: fp32 in either precision, bytes."""
    mode = _mode(dropout=dropout, checkpointing=checkpointing)
    return int(_SAVED_OF_WEIGHTS_GIB.get(adapter, {}).get(mode, 0.0) * _GIB)


def _mode(*, dropout: bool, checkpointing: bool) -> str:
    return "checkpointing" if checkpointing else "dropout" if dropout else "plain"


def _fitting(parameters: TrainingParameters, free_bytes: int) -> tuple[int, bool]:
    """Micro-batch and checkpointing: the first that fits, or the least that can be asked for.

    A smaller micro-batch comes before checkpointing, which costs a third more arithmetic.
    """
    asked = parameters.gradient_checkpointing
    choices = (False, True) if asked == "auto" else (asked,)
    batch = parameters.train_batch_size
    if not free_bytes:
        return batch, choices[0]
    for checkpointing in choices:
        micro_batch = batch
        while micro_batch:
            needed = needed_bytes(parameters, micro_batch, checkpointing)
            if needed <= free_bytes * _USABLE:
                return micro_batch, checkpointing
            micro_batch //= 2
    return 1, choices[-1]
