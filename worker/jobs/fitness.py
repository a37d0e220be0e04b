"""Is everything here that jobs need? One check each; the start refuses what `doctor` calls failed.

Each check looks at one thing and says one sentence. None of them leaves anything changed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from worker.broker.connection import BrokerAddress
from worker.broker.examination import (
    BrokerFound,
    BrokerNotReached,
    BrokerRefuses,
    examine,
    greet,
)
from worker.contract.base_model import BaseModelEntry
from worker.jobs.assembly import catalogue_of, s3_store, topology_of
from worker.jobs.devices import Share, visible_gpus
from worker.jobs.model_files import folder_of, missing, weight_bytes
from worker.jobs.stages import SPARE_DISK_BYTES
from worker.jobs.trainer_process import trainer_environment
from worker.observability.gpus import read_gpus
from worker.outbound.address import HostList
from worker.settings import Settings, SettingsError
from worker.storage.store import ObjectUrl, StorageError
from worker.webhooks.reach import why_unreachable

#: Tries one GPU in a process of its own, since the supervisor has no torch.
GPU_COMMAND = (sys.executable, "-m", "worker.training.fitness")

#: How long that may take, seconds; most of it imports torch.
GPU_SECONDS = 120.0

#: Less free GPU memory than that is worth a word, bytes: somebody else uses it.
_LITTLE_GPU_BYTES = 6 * 1024**3

#: A broker older than this was never tried with, as (major, minor).
OLDEST_BROKER = (3, 10)

#: A clock that differs more from the store's is worth a word; beyond the second the store refuses
#: what is signed with it. Seconds.
_CLOCK_SECONDS, _CLOCK_REFUSED_SECONDS = 5.0, 900.0

_MIB, _GIB = 1024**2, 1024**3


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, `warning` (jobs run, but look at it), `failed` (they cannot)."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    sentence: str


Check = Callable[[Settings], list[Finding]]


def refuse_to_start(settings: Settings) -> None:
    """The checks before a start.

    A broker or a store that is not there yet is no reason: the worker waits for both.

    Raises:
        SettingsError: one sentence for each check that failed.
    """
    found = [finding for check in AT_START for finding in check(settings)]
    if failed := [finding.sentence for finding in found if finding.verdict == "failed"]:
        raise SettingsError(failed)


def examine_all(settings: Settings) -> Iterator[Finding]:
    """Every check there is, as `lora-worker doctor` shows them."""
    for check in EVERY:
        yield from check(settings)


# --- this machine


def disk(settings: Settings) -> list[Finding]:
    """WORK_DIR can be written and has room for a job."""
    folder = settings.work_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        return [_failed("disk", f"WORK_DIR {folder} cannot be written: {error.strerror}")]
    free = shutil.disk_usage(folder).free
    sentence = f"WORK_DIR {folder} has {free / _GIB:.1f} GiB free"
    if free < SPARE_DISK_BYTES:
        need = SPARE_DISK_BYTES // _MIB
        return [_failed("disk", f"{sentence}; a job needs {need} MiB beside its pictures")]
    return [Finding("disk", "ok", sentence)]


def memory(settings: Settings) -> list[Finding]:
    """The default base model fits into this machine's memory, once for each trainer."""
    available = available_memory_bytes()
    entry = catalogue_of(settings)[settings.default_base_model]
    folder = folder_of(entry)
    weights = weight_bytes(entry, folder) if folder else 0
    sentence = f"{available / _GIB:.1f} GiB of memory available"
    if available < weights:
        return [_failed("memory", f"{sentence}; {entry.name} alone has {weights / _GIB:.1f} GiB")]
    trainers = settings.trainers_per_gpu * max(1, len(visible_gpus(settings.cuda_visible_devices)))
    if available < weights * trainers:
        return [
            _warning("memory", f"{sentence}; {trainers} trainers that load {entry.name} need more")
        ]
    return [Finding("memory", "ok", sentence)]


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
        return [_failed("gpu", sentence) if strict else _warning("gpu", sentence)]
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
        return _failed("gpu", f"GPU {gpu} cannot be tried: {type(error).__name__}")
    if not found["ok"]:
        return _failed("gpu", f"GPU {gpu} does not compute: {found['reason']} (driver {driver})")
    free, total = found["free_bytes"] / _GIB, found["total_bytes"] / _GIB
    sentence = (
        f"GPU {gpu} computes: {found['name']}, {free:.1f} of {total:.1f} GiB free, "
        f"driver {driver}, CUDA {found['cuda']}"
    )
    little = found["free_bytes"] < _LITTLE_GPU_BYTES
    return _warning("gpu", f"{sentence}; that is little") if little else _ok("gpu", sentence)


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
        return _warning(name, f"{entry.name} is not here yet; the first job of its kind fetches it")
    if folder is None:
        problem = f"{entry.location} is neither a folder here nor in the hub's cache"
    elif clauses := missing(entry, folder):
        problem = "; ".join(clauses)
    else:
        size = weight_bytes(entry, folder) / _GIB
        return _ok(name, f"{entry.name} is here, {size:.2f} GiB of weights")
    sentence = f"base model {entry.name} cannot be loaded: {problem}"
    return _failed(name, sentence) if is_default else _warning(name, sentence)


# --- what is around it


def broker_lets_us_in(settings: Settings) -> list[Finding]:
    """The broker does not refuse us; whether it is there at all is not asked at a start."""
    try:
        greet(BrokerAddress(settings.broker_url))
    except BrokerRefuses as error:
        return [_failed("broker", f"RABBITMQ_URL: the broker refuses this login: {error}")]
    except BrokerNotReached as error:
        return [_warning("broker", f"the broker is not there yet: {error}")]
    except ValueError as error:
        return [_failed("broker", f"RABBITMQ_URL is not valid: {error}")]
    return [_ok("broker", "the broker lets us in")]


def broker(settings: Settings) -> list[Finding]:
    """Version, permissions, and every queue with the arguments that the settings ask for."""
    try:
        found = examine(BrokerAddress(settings.broker_url), topology_of(settings))
    except BrokerRefuses as error:
        return [_failed("broker", f"RABBITMQ_URL: the broker refuses this login: {error}")]
    except BrokerNotReached as error:
        return [_failed("broker", f"the broker cannot be reached: {error}")]
    except ValueError as error:
        return [_failed("broker", f"RABBITMQ_URL is not valid: {error}")]
    return [_version(found), _permissions(found), *_queues(found)]


def _version(found: BrokerFound) -> Finding:
    sentence = f"{found.product} {found.version}"
    numbers = found.version.split(".")[:2]
    if all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) < OLDEST_BROKER:
        oldest = ".".join(map(str, OLDEST_BROKER))
        return _warning("broker", f"{sentence}; the oldest that was tried is {oldest}")
    return _ok("broker", sentence)


def _permissions(found: BrokerFound) -> Finding:
    if found.not_allowed:
        return _failed("broker", f"its user may not do what the worker does: {found.not_allowed}")
    return _ok("broker", "its user may declare, write and read")


def _queues(found: BrokerFound) -> list[Finding]:
    other = [queue.name for queue in found.queues if queue.state == "otherwise"]
    absent = [queue.name for queue in found.queues if queue.state == "missing"]
    findings = []
    if other:
        findings.append(
            _warning(
                "queues",
                f"{', '.join(other)}: declared with other arguments than the settings ask for; "
                "they are used as they are; drain and delete them to have them declared anew",
            )
        )
    if absent:
        findings.append(_warning("queues", f"{len(absent)} missing: declared at the next start"))
    return findings or [_ok("queues", f"all {len(found.queues)} as the settings ask for")]


def store(settings: Settings) -> list[Finding]:
    """The bucket can be read and written, conditional writes are enforced, clocks agree."""
    bucket = settings.s3_bucket
    try:
        objects = s3_store(settings)
        abilities = objects.probe(ObjectUrl(bucket, "jobs/"))
        if not abilities.writable:
            return [_failed("store", f"S3_BUCKET {bucket} cannot be written: {abilities.reason}")]
        url = ObjectUrl(bucket, f"jobs/.doctor-{os.getpid()}")
        objects.write(url, b"?", content_type="text/plain")
        read = objects.read(url)
        objects.delete(url)
    except (StorageError, ValueError) as error:
        return [_failed("store", f"S3_BUCKET {bucket} cannot be used: {error}")]
    if read is None or read.body != b"?":
        return [_failed("store", f"S3_BUCKET {bucket}: what was written is not read back")]
    findings = [_ok("store", f"bucket {bucket} is read and written")]
    if abilities.conditional_put:
        findings.append(_ok("store", "conditional writes are enforced"))
    else:
        findings.append(_failed("store", f"two workers may train one job: {abilities.reason}"))
    return [*findings, _clock(read.server_time)]


def _clock(server_time: datetime) -> Finding:
    seconds = abs((datetime.now(UTC) - server_time).total_seconds())
    sentence = f"this machine's clock and the store's differ by {seconds:.0f} s"
    if seconds > _CLOCK_REFUSED_SECONDS:
        return _failed("clock", f"{sentence}; set the clock")
    return _warning("clock", sentence) if seconds > _CLOCK_SECONDS else _ok("clock", sentence)


def pictures(settings: Settings) -> list[Finding]:
    """Messages may name some buckets only; in development any will do."""
    if settings.image_allowed_buckets or settings.environment != "production":
        return []
    sentence = "messages may name any bucket that the worker's credentials can read"
    return [_warning("pictures", f"IMAGE_ALLOWED_BUCKETS is empty: {sentence}")]


def webhooks(settings: Settings) -> list[Finding]:
    """The receivers' hosts accept connections, with TLS where that is required."""
    if not settings.webhook_allowed_hosts:
        return [_warning("webhooks", "WEBHOOK_ALLOWED_HOSTS is empty: nobody is told anything")]
    try:
        hosts = HostList(settings.webhook_allowed_hosts)
    except ValueError as error:
        return [_failed("webhooks", f"WEBHOOK_ALLOWED_HOSTS is not valid: {error}")]
    production = settings.environment == "production"
    found = why_unreachable(hosts, require_https=production)
    return [
        _warning("webhooks", f"{name} cannot be reached: {problem}")
        if problem
        else _ok("webhooks", f"{name} can be reached")
        for name, problem in found.items()
    ]


#: The cheap and certain ones first: a broken machine should not wait for the network.
AT_START: tuple[Check, ...] = (disk, model_files, memory, broker_lets_us_in, gpus)
EVERY: tuple[Check, ...] = (disk, memory, gpus, model_files, broker, store, pictures, webhooks)


def _ok(check: str, sentence: str) -> Finding:
    return Finding(check, "ok", sentence)


def _warning(check: str, sentence: str) -> Finding:
    return Finding(check, "warning", sentence)


def _failed(check: str, sentence: str) -> Finding:
    return Finding(check, "failed", sentence)
