"""What is a trainer started with, and what of the supervisor's environment may it see?"""

import sys
from collections.abc import Mapping

from worker.jobs.devices import Share

#: What a trainer is started with; a test passes a stand-in that speaks the same protocol.
TRAINER_COMMAND = (sys.executable, "-m", "worker.training")

#: A trainer of several processes, one a GPU: the same program, started by Accelerate.
_LAUNCHER = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)

#: Environment that a trainer may see. All else, credentials first, stays with the supervisor.
_PASSED_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "PYTORCH_", "TORCH", "TRITON_", "NCCL_", "HF_", "LC_")

#: Names among those that hold a secret all the same.
_WITHHELD_NAMES = frozenset({"HF_TOKEN", "HF_TOKEN_PATH"})


def trainer_command(processes: int) -> tuple[str, ...]:
    """What starts a trainer of so many processes."""
    if processes == 1:
        return TRAINER_COMMAND
    return (*_LAUNCHER, "--num_processes", str(processes), "--module", "worker.training")


def pack_arguments(slots: int, wait_seconds: float) -> tuple[str, ...]:
    """What is added for a trainer of several jobs at a time; nothing for a trainer of one.

    Args:
        slots: jobs that it trains in one pass.
        wait_seconds: how long a lone job waits for company.
    """
    if slots == 1:
        return ()
    return ("--slots", str(slots), "--pack-wait-seconds", f"{wait_seconds:g}")


def trainer_environment(
    environment: Mapping[str, str], *, share: Share, allow_hub: bool
) -> dict[str, str]:
    """What of `environment` a trainer sees: no credentials, its GPUs, the hub only if allowed.

    What it says of threads and of CUDA's multi-process service (`CUDA_MPS_…`) is passed on.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES))
        and name not in _WITHHELD_NAMES
    }
    if share.gpus is not None:
        passed["CUDA_VISIBLE_DEVICES"] = share.gpus
    elif share.processes > 1:
        passed["ACCELERATE_USE_CPU"] = "true"
    if share.threads is not None:
        passed.setdefault("OMP_NUM_THREADS", str(share.threads))
    if not allow_hub:
        passed["HF_HUB_OFFLINE"] = "1"
    # Same results in every run, where CUDA's matrix library asks for it.
    passed.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    passed["PYTHONUNBUFFERED"] = "1"
    return passed
