"""What does this machine train on, and in which precision? Decided once a job, and said."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from worker.contract.pipe import MemoryReport

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class Arithmetic:
    """How a job is computed.

    Attributes:
        device: where. precision: what Accelerate autocasts to.
        base_dtype: dtype of the frozen UNet; the adapter is always fp32.
        reason: why the precision is not the one that was asked for; empty if it is.
    """

    device: torch.device
    precision: Precision
    base_dtype: torch.dtype
    reason: str = ""


def this_device() -> torch.device:
    """The first visible GPU, or the one of this process among several, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def arithmetic_for(requested: Precision, device: torch.device) -> Arithmetic:
    """The arithmetic of a job on `device`.

    A CPU has no gradient scaler and no fast fp16: fp16 becomes fp32 there, and bf16 stays an
    autocast over an fp32 base.
    """
    if device.type == "cpu":
        if requested == "fp16":
            reason = "a CPU has no fp16 training; fp32 is used"
            return Arithmetic(device, "no", torch.float32, reason)
        return Arithmetic(device, requested, torch.float32)
    if requested == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        reason = "this GPU has no bf16; fp16 is used"
        return Arithmetic(device, "fp16", torch.float16, reason)
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return Arithmetic(device, requested, dtypes[requested])


def compute_repeatably() -> None:
    """Have this process repeat a job bit for bit where its device can.

    Nothing raises where it cannot; in backward passes more of it is seen to (`repeatable.py`).
    cuDNN's attention does not repeat. In this mode torch fills every new tensor with NaN unless it
    is told not to. TF32 is for bases in full precision on a GPU.
    """
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, products in full precision are not rounded to TF32, which a GPU's are otherwise.

    The setting is the whole process's: nobody else may compute meanwhile.
    """
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def device_name(device: torch.device) -> str:
    """The GPU's name, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def device_memory_bytes(device: torch.device) -> int:
    """The GPU's memory in bytes; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_memory_bytes(device: torch.device, trainers: int = 1) -> int:
    """The GPU's memory that this process can still get, in bytes; 0 for a CPU.

    Where several trainers share it, no one counts on more than its part, whoever came first. What
    torch has set aside and does not use counts as free.
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - used
    return max(1, min(int(free + unused), total // trainers - used))


def forget_peak(device: torch.device) -> None:
    """The peak of the GPU's memory is from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_report(device: torch.device) -> MemoryReport:
    """The GPU's memory now, in bytes; zeros on a CPU."""
    if device.type != "cuda":
        return MemoryReport()
    return MemoryReport(
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        peak=torch.cuda.max_memory_allocated(device),
    )
