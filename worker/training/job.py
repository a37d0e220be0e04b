"""One job in the trainer, top to bottom: load, read and encode, plan, train, export, verify."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worker.contract.dataset import counts
from worker.contract.errors import ErrorCode, JobError
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
from worker.training.base_model import (
    LoadedBaseModel,
    Shelf,
    text_encoder_of_same_weights,
    unet_of_same_weights,
)
from worker.training.baton import breathe
from worker.training.dataset_report import log_events
from worker.training.device import (
    Arithmetic,
    arithmetic_for,
    compute_repeatably,
    device_memory_bytes,
    forget_peak,
    free_memory_bytes,
    memory_report,
)
from worker.training.environment import environment
from worker.training.export import export_adapter
from worker.training.file_header import training_facts
from worker.training.images import Pictures
from worker.training.job_previews import previews_of
from worker.training.library_optimizer import refuse_missing_package
from worker.training.loop import StopReason
from worker.training.material import Material, gather, prior_facts
from worker.training.plan import make_plan
from worker.training.prior import class_files
from worker.training.ranks import ALONE, Ranks
from worker.training.result import job_metadata, write_result
from worker.training.resumable import Training
from worker.training.seat import Seated, by_itself
from worker.training.step import Lesson, Trainee
from worker.training.verify import verify_adapter

Report = Callable[[Event], None]
ShouldStop = Callable[[], StopReason | None]

_GIB = 2**30

#: The adapter after the last step, for diffusers, where an earlier one is the best.
LAST_FILE = "lora_weights_last.safetensors"


class _Stopped(Exception):  # noqa: N818 - what happened, in one word
    """Told to stop before the training began."""

    def __init__(self, reason: StopReason) -> None:
        self.reason: StopReason = reason


def run_job(
    command: TrainCommand,
    shelf: Shelf,
    device: torch.device,
    *,
    report: Report,
    should_stop: ShouldStop,
    ranks: Ranks = ALONE,
    seated: Seated = by_itself,
) -> FinishedEvent | StoppedEvent | None:
    """Train, export and verify one job.

    Returns how it ended; None in a process that is not the first, after its last step.

    Args:
        command: the job.
        shelf: where the base model is kept from job to job.
        device: what to train on.
        report: told of everything in between.
        should_stop: looked at between pictures and between steps; the same in all processes.
        ranks: who else trains this job.
        seated: gives the job its place among others that train.

    Raises:
        JobError: what the sender can be told.
    """
    if seated is by_itself:  # else the peak is that of all who share the trainer
        forget_peak(device)
    compute_repeatably()
    arithmetic = arithmetic_for(command.parameters.mixed_precision, device)
    clock = dict(command.earlier_seconds)
    try:
        with _stage("caching", report, device, clock):
            _stop_if_told(should_stop)
            refuse_missing_package(command.parameters.optimizer)
            model = shelf.get(command.base_model, arithmetic)
            material, lesson = _prepare(command, model, report, should_stop, ranks)
        with ExitStack() as place:
            # Before the stage: to wait for a place is not to train.
            seat = place.enter_context(seated(command, model, lesson, report, should_stop))
            with _stage("training", report, device, clock, plan=asdict(lesson.plan)):
                training = Training(command, model, lesson, report, ranks, seat)
                resumed = training.resume()
                captions = material.pictures.captions
                previews = previews_of(
                    command, model, training.trainee, lesson, captions, should_stop
                )
                reason = training.run(should_stop, previews.along)
                place.close()
                if reason:
                    return training.stopped(reason)
                if not ranks.is_first:
                    return None
                validated = training.conclude()
        with _stage("exporting", report, device, clock):
            metadata = job_metadata(
                command,
                model,
                lesson.plan,
                material.pictures,
                resumed=resumed,
                training_seconds=clock["training"],
                drawing_seconds=previews.along.seconds,
            )
            metadata |= {"dataset": counts(material.rows), **prior_facts(material)}
            metadata |= {**validated, **seat.summary()}
            adapters = _export(command, training.trainee, lesson, material.pictures)
            with _clocked("previews", clock):
                drawn = previews.draw(training.trainee, Path(command.output_dir), should_stop)
            return write_result(
                command,
                training.trainee,
                lesson.plan,
                material,
                adapters=adapters,
                drawn=drawn,
                metadata=metadata,
                environment=environment(device),
                memory=memory_report(device),
                stage_seconds=clock,
            )
    except _Stopped as stopped:
        return StoppedEvent(reason=stopped.reason, step=0)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(command, arithmetic) from error
    finally:
        shelf.tidy()


def _prepare(
    command: TrainCommand,
    model: LoadedBaseModel,
    report: Report,
    should_stop: ShouldStop,
    ranks: Ranks,
) -> tuple[Material, Lesson]:
    """Read and encode the pictures, plan the training; says what is not as it was asked for."""
    rules, arithmetic = command.parameters, model.arithmetic
    if arithmetic.reason:
        changed = {
            "requested": rules.mixed_precision,
            "used": arithmetic.precision,
            "reason": arithmetic.reason,
        }
        report(LogEvent(event="precision_changed", fields=changed))
    stop_if_told = functools.partial(_stop_if_told, should_stop)
    images, class_images = (
        _until_told_to_stop(some, should_stop)
        for some in (command.images, class_files(command, model, stop_if_told))
    )
    material = gather(command, model, images, class_images)
    for event in log_events(material.rows):
        report(event)
    free_bytes = free_memory_bytes(arithmetic.device, command.trainers_per_gpu)
    plan = make_plan(
        rules,
        sum(material.buckets),
        memory=model.family.memory,
        free_bytes=ranks.least(free_bytes),
        launch=command.launch,
        processes=ranks.count,
        buckets=material.buckets,
    )
    report(LogEvent(event="training_planned", fields=asdict(plan)))
    if plan.accumulation < ranks.count:
        idle = {"processes": ranks.count, "micro_batches": plan.accumulation}
        report(LogEvent(level="warning", event="processes_without_work", fields=idle))
    return material, Lesson(
        dataset=material.dataset,
        schedule=model.schedule,
        prediction_type=rules.prediction_type or model.prediction_type,
        parameters=rules,
        plan=plan,
        seed=command.seed,
        compile_cache=Path(command.compile_cache_dir) if command.compile_cache_dir else None,
        held_out=material.held_out,
        prior=material.prior,
    )


def _export(
    command: TrainCommand, trainee: Trainee, lesson: Lesson, pictures: Pictures
) -> list[Path]:
    """The adapter's files, written and loaded back; the best one, and the last beside it."""
    folder, best = Path(command.output_dir), trainee.validation.best
    captions = [
        picture.file.caption
        for index, picture in enumerate(pictures.good)
        if index not in lesson.held_out
    ]
    export = functools.partial(_export_this, command, trainee, lesson, captions)
    kept = trainee.validation.best_weights
    if not kept or best is None or best[0] == trainee.step:
        return export(trainee.step, folder)
    with tempfile.TemporaryDirectory(dir=folder) as other:
        for_diffusers, *_ = export(trainee.step, Path(other))
        last = for_diffusers.rename(folder / LAST_FILE)
    trainee.put(kept)
    return [*export(best[0], folder), last]


def _export_this(
    command: TrainCommand,
    trainee: Trainee,
    lesson: Lesson,
    captions: list[str],
    step: int,
    folder: Path,
) -> list[Path]:
    """The files of the adapter as it is: that of after `step` optimizer steps."""
    adapters = export_adapter(
        trainee.unet,
        folder=folder,
        base_model_name=command.base_model.name,
        trigger_word=command.trigger_word,
        training=training_facts(command, lesson, captions, step=step),
        text_encoder=trainee.text_encoder,
    )
    breathe()
    verify_adapter(
        trainee.unet,
        files=adapters,
        fresh_unet=lambda: unet_of_same_weights(trainee.unet),
        text_encoder=trainee.text_encoder,
        fresh_text_encoder=lambda: text_encoder_of_same_weights(trainee.text_encoder),
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
        breathe()
        yield image
    breathe()
    _stop_if_told(should_stop)


@contextmanager
def _clocked(name: str, clock: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    yield
    clock[name] = time.monotonic() - started


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
