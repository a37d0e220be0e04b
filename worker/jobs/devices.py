"""Which GPUs may this worker use? Asked without torch, which the supervisor does not import."""

import shutil
import subprocess

#: How long the driver's tool may take, seconds.
_QUERY_SECONDS = 20.0


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
