"""What happens to a claimed job, in order: preparing, downloading, training, uploading.

Only training needs a trainer.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from worker.contract.base_model_choice import for_base_model
from worker.contract.captions import chosen_caption
from worker.contract.errors import ErrorCode, JobError
from worker.contract.job import TrainingJob
from worker.contract.pipe import (
    CheckpointEvent,
    Event,
    FinishedEvent,
    ImageFile,
    Stage,
    StageEvent,
    StepEvent,
    StepLaunch,
    StopCommand,
    StoppedEvent,
    TrainCommand,
)
from worker.jobs.checkpoints import fetch_newest, store_newest
from worker.jobs.claimed_job import Claimed
from worker.jobs.trainer_files import own_file, own_name
from worker.jobs.trainer_slot import TrainerSlot
from worker.observability import metrics, tracing
from worker.storage.images import FetchedImage, ImageFetcher, ImageProblem
from worker.storage.store import ObjectStore, StorageError

log = structlog.get_logger()

#: Free space that a job needs beside its pictures, bytes: checkpoints and outputs.
SPARE_DISK_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class StageRunner:
    """The stages with what they need of the worker."""

    store: ObjectStore
    fetcher: ImageFetcher
    allow_hub: bool
    time_limit_seconds: float
    step_launch: StepLaunch = "auto"
    compile_cache_dir: Path | None = None
    trainers_per_gpu: int = 1

    def fetch_ahead(
        self, job: TrainingJob, folder: Path, should_stop: Callable[[], bool]
    ) -> Sequence[FetchedImage] | None:
        """The pictures of a job that is not ours yet; None unless all of them are here.

        What went wrong is not judged: it is tried again, and said, when the job is ours.
        """
        try:
            found = self._fetch(job, folder, should_stop)
        except OSError as error:
            log.info("pictures_not_fetched_ahead", reason=str(error))
            return None
        pictures = [image for image in found if not isinstance(image, ImageProblem)]
        return pictures if len(pictures) == len(job.wanted_images) else None

    def train(self, claimed: Claimed, slot: TrainerSlot) -> FinishedEvent | StoppedEvent:
        """All stages up to the files of the trained adapter, which lie in the job's folder.

        Raises:
            JobError: the job cannot go on. Interrupted: it was told to stop.
        """
        with stage("preparing", claimed):
            self._prepare(claimed)
        with stage("downloading", claimed):
            images = self._download(claimed)
            resume_from = fetch_newest(self.store, claimed)
        return self._train(claimed, slot, images, resume_from)

    def store_files(self, claimed: Claimed, finished: FinishedEvent) -> None:
        """Upload what was trained, even by a worker that drains; the caller commits.

        Raises:
            JobError: it cannot be stored. Interrupted: the job was canceled.
        """
        claimed = replace(claimed, should_stop=_unless_drained(claimed.should_stop))
        with stage("uploading", claimed):
            self._upload(claimed, finished)

    def _prepare(self, claimed: Claimed) -> None:
        for name in ("images", "checkpoints", "outputs"):
            (claimed.folder / name).mkdir(parents=True)
        free = shutil.disk_usage(claimed.folder).free
        if free < SPARE_DISK_BYTES:
            raise JobError(
                ErrorCode.TRAINING_FAILED,
                f"The worker's disk has {free // 2**20} MiB free and needs "
                f"{SPARE_DISK_BYTES // 2**20}; the job is tried again elsewhere.",
                transient=True,
            )

    def _download(self, claimed: Claimed) -> list[ImageFile]:
        job = claimed.job
        found = claimed.fetched or self._fetch(
            job, claimed.folder / "images", lambda: claimed.should_stop() is not None
        )
        claimed.stop_here()
        problems = [item for item in found if isinstance(item, ImageProblem)]
        if problems:
            raise JobError(
                ErrorCode.IMAGE_DOWNLOAD_FAILED,
                f"{len(problems)} of {len(job.wanted_images)} pictures could not be downloaded: "
                + "; ".join(f"{p.url}: {p.reason}" for p in problems[:5])
                + ("; …" if len(problems) > 5 else "")
                + ".",
                transient=all(problem.transient for problem in problems),
            )
        return _captioned(job, [image for image in found if isinstance(image, FetchedImage)])

    def _fetch(
        self, job: TrainingJob, folder: Path, should_stop: Callable[[], bool]
    ) -> Sequence[FetchedImage | ImageProblem]:
        return self.fetcher.fetch(job.wanted_images, folder, should_stop=should_stop)

    def _train(
        self, claimed: Claimed, slot: TrainerSlot, images: list[ImageFile], resume_from: str | None
    ) -> FinishedEvent | StoppedEvent:
        claimed.stop_here()
        job = claimed.job
        command = TrainCommand(
            job_id=job.job_id,
            style_id=job.style_id,
            parameters=for_base_model(job.parameters, claimed.base_model),
            seed=job.seed,
            base_model=claimed.base_model,
            images=images[: len(job.images)],
            class_images=images[len(job.images) :],
            output_dir=str(claimed.folder / "outputs"),
            checkpoint_dir=str(claimed.folder / "checkpoints"),
            resume_from=resume_from,
            trigger_word=job.trigger_word,
            allow_hub=self.allow_hub,
            launch=self.step_launch,
            compile_cache_dir=str(self.compile_cache_dir) if self.compile_cache_dir else None,
            trainers_per_gpu=self.trainers_per_gpu,
            alone=claimed.alone,
            claim=claimed.epoch,
            earlier_seconds=dict(claimed.stage_seconds),
        )
        asked = job.parameters.time_limit_seconds or self.time_limit_seconds

        def on_event(event: Event) -> None:
            match event:
                case StageEvent() if event.status == "ended":
                    before = claimed.stage_seconds.get(event.stage, 0.0)  # it may wait twice
                    claimed.stage_seconds[event.stage] = before + event.seconds
                    log_stage(event)
                case StageEvent():
                    claimed.on_event(event)
                    log_stage(event)
                case StepEvent():
                    claimed.on_event(event)
                case CheckpointEvent():
                    store_newest(self.store, claimed, event)

        return slot.train(
            command,
            on_event,
            should_stop=claimed.should_stop,
            time_limit_seconds=min(asked, self.time_limit_seconds),
        )

    def _upload(self, claimed: Claimed, finished: FinishedEvent) -> None:
        prefix = claimed.record.keys.output_prefix(claimed.epoch)
        for file in finished.files:
            claimed.stop_here()
            try:
                self.store.upload(
                    prefix.child(own_name(file.name)),
                    own_file(file.path, claimed.folder),
                    content_type=file.content_type,
                    sha256_hex=file.sha256,
                )
            except StorageError as error:
                raise JobError(
                    ErrorCode.UPLOAD_FAILED,
                    f"The file {file.name} could not be stored: {error}",
                    transient=True,
                ) from None


@contextmanager
def stage(name: Stage, claimed: Claimed) -> Iterator[None]:
    """Say that a stage of the supervisor began and, if it went well, ended."""
    claimed.stop_here()
    began = StageEvent(stage=name, status="started")
    claimed.on_event(began)
    log_stage(began)
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    claimed.stage_seconds[name] = seconds
    log_stage(StageEvent(stage=name, status="ended", seconds=seconds))


def log_stage(event: StageEvent) -> None:
    """One log line a stage's start and end, with the GPU's memory in bytes."""
    if event.status == "ended":
        metrics.STAGE_DURATION.labels(event.stage).observe(event.seconds)
        tracing.stage_ended(event.stage, event.seconds)
    log.info(
        f"stage_{event.status}",
        stage=event.stage,
        seconds=round(event.seconds, 3),
        gpu_allocated_bytes=event.memory.allocated,
        gpu_reserved_bytes=event.memory.reserved,
        gpu_peak_bytes=event.memory.peak,
        **event.fields,
    )


def _captioned(job: TrainingJob, images: Sequence[FetchedImage]) -> list[ImageFile]:
    """The fetched pictures, each with the words that it is trained with."""
    # Filled once: a thousand pictures share one text, and none costs the time to fill it.
    template, wanted = job.template_caption(), job.wanted_images
    files = []
    for image in images:
        _, sent = wanted[image.index]
        caption, source = chosen_caption(
            message=sent,
            file=image.caption if sent is None else None,
            template=template,
            trigger_word=job.trigger_word,
        )
        files.append(
            ImageFile(
                index=image.index,
                path=str(image.path),
                source=image.url,
                caption=caption,
                caption_source=source,
            )
        )
    return files


def _unless_drained(
    should_stop: Callable[[], StopCommand | None],
) -> Callable[[], StopCommand | None]:
    def stop() -> StopCommand | None:
        command = should_stop()
        return None if command and command.reason == "drain" else command

    return stop
