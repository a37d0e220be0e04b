"""Train one job on this machine without broker or store: the same stages, a folder as the store."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.contract.base_model import BaseModelEntry
from worker.contract.base_model_choice import chosen_base_model
from worker.contract.errors import ErrorCode, JobError
from worker.contract.job import TrainingJob
from worker.contract.pipe import FinishedEvent, StageEvent, StepEvent, StopCommand, StoppedEvent
from worker.jobs.claimed_job import Claimed, Interrupted
from worker.jobs.from_settings import image_fetcher, s3_store, trainer_shares, trainer_slot
from worker.jobs.record import JobRecord
from worker.jobs.stages import StageRunner
from worker.settings import Settings
from worker.storage.local import LocalStore

#: Picture files that `train --images DIR` takes.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

#: The folder's stand-in for a bucket.
_BUCKET = "local"

#: Checkpoints and the like, inside the output folder, so that a second run resumes.
_STATE_FOLDER = ".lora-worker"


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name. Captions in `.txt` files are found later."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def train_locally(
    job: TrainingJob,
    settings: Settings,
    catalogue: dict[str, BaseModelEntry],
    output: Path,
    *,
    on_event: Callable[[StageEvent | StepEvent], None],
    should_stop: Callable[[], StopCommand | None],
    trainer_command: Sequence[str] | None = None,
) -> FinishedEvent | StoppedEvent:
    """Train `job` and leave its files in `output`.

    An interrupted run leaves its checkpoint there too, and the next run of the same job resumes.

    Raises:
        JobError: the job cannot be trained.
    """
    base_model = chosen_base_model(job.parameters, catalogue, settings.default_base_model)
    output.mkdir(parents=True, exist_ok=True)
    store = LocalStore(output / _STATE_FOLDER, buckets=[_BUCKET])
    record = JobRecord(store, _BUCKET, job.job_id)
    slot = trainer_slot(settings, trainer_shares(settings)[0], 1, trainer_command)
    stages = StageRunner(
        store=store,
        fetcher=image_fetcher(settings, s3_store(settings), allow_files=True),
        allow_hub=settings.allow_model_hub,
        time_limit_seconds=settings.job_time_limit_seconds,
        step_launch=settings.step_launch,
        compile_cache_dir=settings.compile_cache_dir,
    )
    slot.warm_up()
    with tempfile.TemporaryDirectory(prefix="lora-worker-") as folder:
        claimed = Claimed(
            job=job,
            epoch=1,
            record=record,
            folder=Path(folder),
            base_model=base_model,
            on_event=on_event,
            should_stop=should_stop,
            checkpoint=record.checkpoint(),
        )
        try:
            ended = stages.train(claimed, slot)
        except Interrupted as stop:
            return StoppedEvent(reason=stop.command.reason, step=0)
        finally:
            slot.close()
        if isinstance(ended, StoppedEvent):
            if ended.reason == "time_limit":
                raise JobError(
                    ErrorCode.TIME_LIMIT_EXCEEDED,
                    f"The training reached its time limit at step {ended.step}.",
                )
            return ended
        for file in ended.files:
            target = output / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, target)
    shutil.rmtree(output / _STATE_FOLDER)
    return ended
