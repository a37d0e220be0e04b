"""Which GPUs may this worker use, and which trainer gets which? Asked without torch.

The supervisor does not import it.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass

#: How long the driver's tool may take, seconds.
_QUERY_SECONDS = 20.0


@dataclass(frozen=True)
class Share:
    """What of the machine one trainer has.

    Attributes:
        gpus: its GPUs as `CUDA_VISIBLE_DEVICES` names them, comma-separated; None on a machine
            without any.
        processes: how many it consists of, one a GPU.
        trainers: how many have the same GPU, or the machine where there is none.
    """

    gpus: str | None
    processes: int = 1
    trainers: int = 1

    @property
    def threads(self) -> int | None:
        """Threads of each process, so that all of them have one core each; None: as torch likes."""
        processes = self.trainers * self.processes
        if self.gpus is not None or processes == 1:
            return None
        return max(1, len(os.sched_getaffinity(0)) // processes)


def shares(gpus: list[str], *, trainers_per_gpu: int, gpus_per_trainer: int) -> list[Share]:
    """The trainers of a machine. One without a GPU counts as one with one, which is its processors.

    Raises:
        ValueError: the GPUs cannot be divided so; the sentence names the settings.
    """
    if trainers_per_gpu > 1 and gpus_per_trainer > 1:
        raise ValueError("TRAINERS_PER_GPU and GPUS_PER_TRAINER cannot both be more than 1")
    if len(gpus) % gpus_per_trainer:
        raise ValueError(
            f"GPUS_PER_TRAINER is {gpus_per_trainer}, but {len(gpus)} GPUs are visible, which "
            "is not a multiple of it; change it or CUDA_VISIBLE_DEVICES"
        )
    groups: list[str | None] = [
        ",".join(gpus[start : start + gpus_per_trainer])
        for start in range(0, len(gpus), gpus_per_trainer)
    ]
    return [
        Share(group, gpus_per_trainer, trainers_per_gpu)
        for group in groups or [None]
        for _ in range(trainers_per_gpu)
    ]


def visible_gpus(cuda_visible_devices: str | None) -> list[str]:
    """The GPUs as `CUDA_VISIBLE_DEVICES` names them; empty on a machine without one."""
    present = _present_gpus()
    if cuda_visible_devices is None:
        return present
    chosen = [part.strip() for part in cuda_visible_devices.split(",") if part.strip()]
    return [gpu for gpu in chosen if gpu != "-1"] if present else []


def _present_gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(  # noqa: S603 - the driver's own tool, no input of others
            [tool, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]
