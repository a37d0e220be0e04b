"""Is this machine fit for jobs? Its disk, its memory, its GPUs, the base models' files."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from worker.contract.base_model import BaseModelEntry
from worker.jobs.devices import Share, visible_gpus
from worker.jobs.finding import Finding, failed, ok, warning
from worker.jobs.from_settings import catalogue_of
from worker.jobs.model_files import folder_of, missing, weight_bytes
from worker.jobs.stages import SPARE_DISK_BYTES
from worker.jobs.trainer_start import trainer_environment
from worker.observability.gpus import read_gpus
from worker.settings import Settings

#: Tries one GPU in a process of its own, since the supervisor has no torch.
GPU_COMMAND = (sys.executable, "-m", "worker.training.fitness")

#: How long that may take, seconds; most of it imports torch.
GPU_SECONDS = 120.0

#: Less free GPU memory than that is worth a word, bytes: somebody else uses it.
_LITTLE_GPU_BYTES = 6 * 1024**3

_MIB, _GIB = 1024**2, 1024**3


def disk(settings: Settings) -> list[Finding]:
    """WORK_DIR can be written and has room for a job."""
    folder = settings.work_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        return [failed("disk", f"WORK_DIR {folder} cannot be written: {error.strerror}")]
    free = shutil.disk_usage(folder).free
    sentence = f"WORK_DIR {folder} has {free / _GIB:.1f} GiB free"
    if free < SPARE_DISK_BYTES:
        need = SPARE_DISK_BYTES // _MIB
        return [failed("disk", f"{sentence}; a job needs {need} MiB beside its pictures")]
    if free < SPARE_DISK_BYTES * settings.pack_slots:
        need = SPARE_DISK_BYTES * settings.pack_slots // _MIB
        return [warning("disk", f"{sentence}; PACK_SLOTS={settings.pack_slots} needs {need} MiB")]
    return [ok("disk", sentence)]


def memory(settings: Settings) -> list[Finding]:
    """The default base model fits into this machine's memory, once for each trainer."""
    available = available_memory_bytes()
    entry = catalogue_of(settings)[settings.default_base_model]
    folder = folder_of(entry)
    weights = weight_bytes(entry, folder) if folder else 0
    sentence = f"{available / _GIB:.1f} GiB of memory available"
    if available < weights:
        return [failed("memory", f"{sentence}; {entry.name} alone has {weights / _GIB:.1f} GiB")]
    trainers = settings.trainers_per_gpu * max(1, len(visible_gpus(settings.cuda_visible_devices)))
    if available < weights * trainers:
        return [
            warning("memory", f"{sentence}; {trainers} trainers that load {entry.name} need more")
        ]
    return [ok("memory", sentence)]


def available_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Memory that this process may still use, by the kernel and by its container's limit."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def gpus(settings: Settings) -> list[Finding]:
    """Each GPU multiplies, and its results are right."""
    visible = visible_gpus(settings.cuda_visible_devices)
    if not visible:
        sentence = "no GPU is visible: driver, CUDA_VISIBLE_DEVICES, --gpus all?"
        strict = settings.environment == "production"
        return [failed("gpu", sentence) if strict else warning("gpu", sentence)]
    driver = next((reading.driver for reading in read_gpus()), "unknown")
    return [try_gpu(gpu, driver) for gpu in visible]


def try_gpu(gpu: str, driver: str, command: Sequence[str] = GPU_COMMAND) -> Finding:
    """Whether one GPU computes, as `command` finds; it prints what `training.fitness` prints."""
    try:
        answer = subprocess.run(  # noqa: S603 - our own program, no shell
            command,
            env=trainer_environment(os.environ, share=Share(gpu), allow_hub=False),
            capture_output=True,
            text=True,
            timeout=GPU_SECONDS,
            check=True,
        )
        found = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return failed("gpu", f"GPU {gpu} cannot be tried: {type(error).__name__}")
    if not found["ok"]:
        return failed("gpu", f"GPU {gpu} does not compute: {found['reason']} (driver {driver})")
    free, total = found["free_bytes"] / _GIB, found["total_bytes"] / _GIB
    sentence = (
        f"GPU {gpu} computes: {found['name']}, {free:.1f} of {total:.1f} GiB free, "
        f"driver {driver}, CUDA {found['cuda']}"
    )
    little = found["free_bytes"] < _LITTLE_GPU_BYTES
    return warning("gpu", f"{sentence}; that is little") if little else ok("gpu", sentence)


def model_files(settings: Settings) -> list[Finding]:
    """The default base model's files are here; of the other rows it is worth a word."""
    return [
        _model(entry, settings, name == settings.default_base_model)
        for name, entry in catalogue_of(settings).items()
    ]


def _model(entry: BaseModelEntry, settings: Settings, is_default: bool) -> Finding:
    folder = folder_of(entry)
    name = "models"
    if folder is None and settings.allow_model_hub:
        return warning(name, f"{entry.name} is not here yet; the first job of its kind fetches it")
    if folder is None:
        problem = f"{entry.location} is neither a folder here nor in the hub's cache"
    elif clauses := missing(entry, folder):
        problem = "; ".join(clauses)
    else:
        size = weight_bytes(entry, folder) / _GIB
        return ok(name, f"{entry.name} is here, {size:.2f} GiB of weights")
    sentence = f"base model {entry.name} cannot be loaded: {problem}"
    return failed(name, sentence) if is_default else warning(name, sentence)
