"""What does a setting become? One function a part, each usable alone; no connection is made yet.

What cannot be made of a setting is a complaint that names its variable.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from worker.broker.topology import Topology
from worker.contract.base_model import BaseModelEntry, CatalogueError, load_catalogue
from worker.jobs.devices import Share, shares, visible_gpus
from worker.jobs.trainer_slot import TrainerSlot
from worker.jobs.trainer_start import pack_arguments, trainer_command
from worker.settings import Settings, SettingsError
from worker.storage.bucket_list import BucketList
from worker.storage.image_sources import ImageSources
from worker.storage.images import ImageFetcher
from worker.storage.s3 import S3Store
from worker.storage.store import ObjectStore

log = structlog.get_logger()

_T = TypeVar("_T")


def topology_of(settings: Settings) -> Topology:
    """The names and kinds of the queues."""
    return Topology(
        queue=settings.rabbitmq_queue,
        queue_type=settings.rabbitmq_queue_type,
        parked_seconds=settings.parked_seconds,
        dead_max_messages=settings.dead_letter_max_messages,
        job_retry_seconds=settings.job_retry_seconds,
        events_retry_seconds=settings.webhook_retry_seconds,
    )


def s3_store(settings: Settings) -> S3Store:
    """The store; no request is made yet."""
    return S3Store(
        endpoint_url=settings.s3_endpoint_url, timeout_seconds=settings.s3_timeout_seconds
    )


def image_fetcher(settings: Settings, s3: ObjectStore, *, allow_files: bool) -> ImageFetcher:
    """What fetches pictures, within the operator's limits."""
    buckets = named(
        "IMAGE_ALLOWED_BUCKETS",
        lambda: BucketList(settings.image_allowed_buckets, own_bucket=settings.s3_bucket),
    )
    sources = named(
        "IMAGE_ALLOWED_HOSTS",
        lambda: ImageSources(
            s3=s3,
            gs_as_s3=settings.s3_endpoint_url is not None,
            buckets=buckets,
            https_hosts=settings.image_allowed_hosts,
            allow_files=allow_files,
            max_bytes=settings.max_image_bytes,
        ),
    )
    return ImageFetcher(
        sources,
        parallelism=settings.download_parallelism,
        deadline_seconds=settings.download_timeout_seconds,
    )


def catalogue_of(settings: Settings) -> dict[str, BaseModelEntry]:
    """The base models that jobs may name. Raises `SettingsError`."""
    try:
        catalogue = load_catalogue(settings.base_models_file)
    except CatalogueError as error:
        raise SettingsError([f"BASE_MODELS_FILE is not valid: {error}"]) from None
    if settings.default_base_model not in catalogue:
        raise SettingsError(
            [
                f"DEFAULT_BASE_MODEL {settings.default_base_model!r} is not in "
                f"{settings.base_models_file}; it has {', '.join(sorted(catalogue))}"
            ]
        )
    return catalogue


def trainer_shares(settings: Settings) -> list[Share]:
    """How this machine is divided among trainers. Raises `SettingsError`."""
    gpus = visible_gpus(settings.cuda_visible_devices)
    if not gpus and settings.environment == "production":
        raise SettingsError(
            ["CUDA_VISIBLE_DEVICES shows no GPU; production needs one (driver, --gpus all?)"]
        )
    if not gpus:
        log.warning("no_gpu", device="cpu", note="training on the CPU is for trying things out")
    try:
        return shares(
            gpus,
            trainers_per_gpu=settings.trainers_per_gpu,
            gpus_per_trainer=settings.gpus_per_trainer,
        )
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def trainer_slot(
    settings: Settings,
    share: Share,
    max_jobs: int,
    command: Sequence[str] | None,
    *,
    at_a_time: int = 1,
) -> TrainerSlot:
    """One place for a trainer of so many jobs at a time; nothing is started yet."""
    program = command or trainer_command(share.processes)
    return TrainerSlot(
        share=share,
        allow_hub=settings.allow_model_hub,
        max_jobs=max_jobs,
        start_timeout_seconds=settings.trainer_start_timeout_seconds,
        command=(*program, *pack_arguments(at_a_time, settings.pack_wait_seconds)),
        most_at_a_time=at_a_time,
    )


def named(variable: str, build: Callable[[], _T]) -> _T:
    """What `build` gives; what it cannot use is a complaint about `variable`."""
    try:
        return build()
    except ValueError as error:
        raise SettingsError([f"{variable} is not valid: {error}"]) from None
