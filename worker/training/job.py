"""One job in the trainer, top to bottom: load, read and encode, plan, train, export, verify."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worker.contract.dataset import PictureReport, counts
from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import held_out_count
from worker.contract.pipe import (
    Event,
    FinishedEvent,
    ImageFile,
    LogEvent,
    Stage,
    StageEvent,
    StoppedEvent,
    TrainCommand,
)
from worker.training.base_model import BaseModelShelf, LoadedBaseModel, unet_of_same_weights
from worker.training.cache import as_it_is, count_tokens, encode
from worker.training.captions import caption_orders, orders_each
from worker.training.dataset_report import doubled, log_events, picture_reports
from worker.training.device import (
    Arithmetic,
    arithmetic_for,
    compute_repeatably,
    device_memory_bytes,
    free_memory_bytes,
    memory_report,
)
from worker.training.export import export_adapter, verify_adapter
from worker.training.framing import framing_of
from worker.training.images import Pictures
from worker.training.loop import StopReason
from worker.training.plan import make_plan
from worker.training.result import job_metadata, write_result
from worker.training.resumable import Training
from worker.training.sampler import held_out
from worker.training.step import Lesson, Trainee

Report = Callable[[Event], None]
ShouldStop = Callable[[], StopReason | None]

_GIB = 2**30

#: Folder in the outputs with a small JPEG of each picture, for the report.
THUMBNAILS = "thumbnails"

#: The adapter after the last step, for diffusers, where an earlier one is the best.
LAST_FILE = "lora_weights_last.safetensors"


class _Stopped(Exception):  # noqa: N818 - what happened, in one word
    """Told to stop before the training began."""

    def __init__(self, reason: StopReason) -> None:
        self.reason: StopReason = reason


def run_job(
    command: TrainCommand,
    shelf: BaseModelShelf,
    device: torch.device,
    *,
    report: Report,
    should_stop: ShouldStop,
) -> FinishedEvent | StoppedEvent:
    """Train, export and verify one job.

    Args:
        command: the job.
        shelf: where the base model is kept from job to job.
        device: what to train on.
        report: told of everything in between.
        should_stop: looked at between pictures and between steps.

    Raises:
        JobError: what the sender can be told.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    compute_repeatably()
    arithmetic = arithmetic_for(command.parameters.mixed_precision, device)
    clock: dict[str, float] = {}
    try:
        with _stage("caching", report, device, clock):
            _stop_if_told(should_stop)
            model = shelf.get(command.base_model, arithmetic)
            pictures, rows, lesson = _prepare(command, model, report, should_stop)
        with _stage("training", report, device, clock, plan=asdict(lesson.plan)):
            training = Training(command, model, lesson, report)
            resumed = training.resume()
            if reason := training.run(should_stop):
                return training.stopped(reason)
            validated = training.conclude()
        with _stage("exporting", report, device, clock):
            metadata = job_metadata(
                command,
                model,
                lesson.plan,
                pictures,
                resumed=resumed,
                training_seconds=clock["training"],
            )
            metadata |= {"dataset": counts(rows), **validated}
            return write_result(
                command,
                training.trainee,
                lesson.plan,
                pictures,
                rows,
                adapters=_export(command, training.trainee, lesson),
                metadata=metadata,
                stage_seconds=clock,
            )
    except _Stopped as stopped:
        return StoppedEvent(reason=stopped.reason, step=0)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(command, arithmetic) from error
    finally:
        shelf.tidy()


def _prepare(
    command: TrainCommand, model: LoadedBaseModel, report: Report, should_stop: ShouldStop
) -> tuple[Pictures, list[PictureReport], Lesson]:
    """Read and encode the pictures, plan the training; says what is not as it was asked for."""
    rules, arithmetic = command.parameters, model.arithmetic
    if arithmetic.reason:
        changed = {
            "requested": rules.mixed_precision,
            "used": arithmetic.precision,
            "reason": arithmetic.reason,
        }
        report(LogEvent(event="precision_changed", fields=changed))
    framing = framing_of(rules, command.seed)
    thumbnails = Path(command.output_dir) / THUMBNAILS
    thumbnails.mkdir(exist_ok=True)
    pictures = Pictures(
        _until_told_to_stop(command.images, should_stop),
        framing,
        rules.on_bad_image,
        thumbnails=thumbnails,
    )
    dataset = encode(
        model,
        pictures,
        mirrored=rules.random_flip,
        crops=framing.crops,
        caption_orders=_orders(command),
    )
    rows = picture_reports(
        pictures,
        count_tokens=lambda caption: count_tokens(model, caption),
        most_tokens=model.text_encoder.config.max_position_embeddings,
        thumbnails=thumbnails,
    )
    for event in log_events(rows):
        report(event)
    used = len(pictures.good)
    wanted = held_out_count(rules.validation_split, used)
    kept_away = tuple(held_out(command.seed, used, wanted, doubled=doubled(rows)))
    plan = make_plan(
        rules,
        used - wanted,
        free_bytes=free_memory_bytes(arithmetic.device),
        launch=command.launch,
        buckets=[len(bucket) for bucket in dataset.by_bucket(without=kept_away)],
    )
    report(LogEvent(event="training_planned", fields=asdict(plan)))
    return (
        pictures,
        rows,
        Lesson(
            dataset=dataset,
            schedule=model.schedule,
            prediction_type=rules.prediction_type or model.prediction_type,
            parameters=rules,
            plan=plan,
            seed=command.seed,
            compile_cache=Path(command.compile_cache_dir) if command.compile_cache_dir else None,
            held_out=kept_away,
        ),
    )


def _orders(command: TrainCommand) -> Callable[[str], Sequence[str]]:
    """The orders of its tags that each caption is trained in."""
    rules = command.parameters
    if not rules.shuffle_captions:
        return as_it_is
    most = orders_each(len({image.caption for image in command.images}))
    return functools.partial(caption_orders, seed=command.seed, kept=rules.keep_tokens, most=most)


def _export(command: TrainCommand, trainee: Trainee, lesson: Lesson) -> list[Path]:
    """The adapter's files, written and loaded back; the best one, and the last beside it."""
    folder, best = Path(command.output_dir), trainee.validation.best
    kept = trainee.validation.best_weights
    if not kept or best is None or best[0] == trainee.step:
        return _export_this(command, trainee, lesson, folder)
    with tempfile.TemporaryDirectory(dir=folder) as other:
        for_diffusers, *_ = _export_this(command, trainee, lesson, Path(other))
        last = for_diffusers.rename(folder / LAST_FILE)
    trainee.put(kept)
    return [*_export_this(command, trainee, lesson, folder), last]


def _export_this(
    command: TrainCommand, trainee: Trainee, lesson: Lesson, folder: Path
) -> list[Path]:
    rules, plan = command.parameters, lesson.plan
    adapters = export_adapter(
        trainee.unet,
        folder=folder,
        base_model_name=command.base_model.name,
        trigger_word=command.trigger_word,
        training={
            "learning_rate": str(rules.learning_rate),
            "num_epochs": str(plan.total_epochs),
            "steps": str(plan.total_steps),
            "num_train_images": str(plan.pictures),
            "resolution": str(rules.resolution),
            "seed": str(command.seed),
            "prediction_type": lesson.prediction_type,
        },
    )
    verify_adapter(
        trainee.unet,
        files=adapters,
        fresh_unet=lambda: unet_of_same_weights(trainee.unet),
    )
    return adapters


def _stop_if_told(should_stop: ShouldStop) -> None:
    if reason := should_stop():
        raise _Stopped(reason)


def _until_told_to_stop(
    images: Iterable[ImageFile], should_stop: ShouldStop
) -> Iterator[ImageFile]:
    """`images`, with a look before each and after the last: a thousand take minutes to encode."""
    for image in images:
        _stop_if_told(should_stop)
        yield image
    _stop_if_told(should_stop)


@contextmanager
def _stage(
    name: Stage, report: Report, device: torch.device, clock: dict[str, float], **fields: Any
) -> Iterator[None]:
    memory = memory_report(device)
    report(StageEvent(stage=name, status="started", memory=memory, fields=fields))
    started = time.monotonic()
    yield
    clock[name] = time.monotonic() - started
    report(
        StageEvent(stage=name, status="ended", seconds=clock[name], memory=memory_report(device))
    )


def _out_of_memory(command: TrainCommand, arithmetic: Arithmetic) -> JobError:
    rules = command.parameters
    total = device_memory_bytes(arithmetic.device) / _GIB
    return JobError(
        ErrorCode.GPU_OUT_OF_MEMORY,
        f"The GPU's {total:.0f} GiB are not enough for resolution {rules.resolution} with "
        f"train_batch_size {rules.train_batch_size}; send a smaller one of them, or "
        "gradient_checkpointing true.",
    )
