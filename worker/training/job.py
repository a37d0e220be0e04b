"""One job in the trainer, top to bottom: load, read, plan, cache, train, export, verify."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    CheckpointEvent,
    Event,
    FinishedEvent,
    LogEvent,
    OutputFile,
    Stage,
    StageEvent,
    StoppedEvent,
    TrainCommand,
)
from worker.training.adapter import add_adapter
from worker.training.base_model import BaseModelShelf, LoadedBaseModel, unet_of_same_weights
from worker.training.cache import encode
from worker.training.checkpoint import (
    CheckpointUnusable,
    environment,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from worker.training.device import (
    Arithmetic,
    arithmetic_for,
    compute_repeatably,
    device_memory_bytes,
    device_name,
    free_memory_bytes,
    memory_report,
)
from worker.training.evaluate import fixed_losses
from worker.training.export import export_adapter, verify_adapter
from worker.training.images import BadPicture, Picture, read_pictures
from worker.training.loop import StopReason, train
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.plan import Plan, make_plan
from worker.training.step import Lesson, Trainee

Report = Callable[[Event], None]

#: Libraries whose versions a result names.
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "accelerate", "lora-worker")

_GIB = 2**30


def run_job(
    command: TrainCommand,
    shelf: BaseModelShelf,
    device: torch.device,
    *,
    report: Report,
    should_stop: Callable[[], StopReason | None],
) -> FinishedEvent | StoppedEvent:
    """Train, export and verify one job.

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
            model = shelf.get(command.base_model, arithmetic)
            pictures, bad, plan, lesson = _prepare(command, model, report)
        if reason := should_stop():
            return StoppedEvent(reason=reason, step=0)
        with _stage("training", report, device, clock, plan=asdict(plan)):
            job = _Training(command, model, plan, lesson, report)
            resumed = job.resume()
            reason = job.run(should_stop)
            if reason is not None:
                return job.stopped(reason)
            plan = lesson.plan  # a smaller one, where memory did not suffice
            before, after = fixed_losses(job.trainee, lesson)
        with _stage("exporting", report, device, clock):
            metadata = _metadata(command, model, plan, pictures, bad, resumed, clock) | {
                "evaluation_loss_before": before,
                "evaluation_loss_after": after,
            }
            return _export(command, model, job.trainee, plan, metadata, pictures, clock)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(command, arithmetic) from error
    finally:
        shelf.tidy()


class _Training:
    """The part between a prepared lesson and a trained adapter."""

    def __init__(
        self,
        command: TrainCommand,
        model: LoadedBaseModel,
        plan: Plan,
        lesson: Lesson,
        report: Report,
    ) -> None:
        self._command, self._lesson, self._report = command, lesson, report
        rules = command.parameters
        if plan.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        accelerator = new_accelerator(model.arithmetic)
        adapter = add_adapter(model.unet, rules, command.seed)
        optimizer = new_optimizer(accelerator, adapter, rules)
        self.trainee = Trainee(
            unet=model.unet,
            adapter=adapter,
            accelerator=accelerator,
            optimizer=optimizer,
            schedule=new_schedule(optimizer, rules, plan.total_steps),
            losses=torch.full((plan.total_steps,), torch.nan, device=model.arithmetic.device),
        )
        self._belongs_to = fingerprint(
            rules,
            command.seed,
            lesson.dataset.sha256,
            tuple(image.caption for image in command.images),
            command.base_model.name,
        )
        self._made_in = environment(device_name(model.arithmetic.device))

    @property
    def _fits(self) -> dict[str, Any]:
        plan = self._lesson.plan
        rounding = {"micro_batch": str(plan.micro_batch), "compiled": str(plan.compiled)}
        return {"belongs_to": self._belongs_to, "made_in": self._made_in | rounding}

    def resume(self) -> dict[str, Any]:
        """Go on from the checkpoint that the command names, if it fits."""
        path = self._command.resume_from
        if path is None:
            return {"resumed": False, "resumed_exactly": True}
        try:
            exactly = load_checkpoint(self.trainee, Path(path), **self._fits)
        except CheckpointUnusable as error:
            self._log("warning", "checkpoint_not_used", reason=str(error))
            return {"resumed": False, "resumed_exactly": True}
        self._log("info", "training_resumed", step=self.trainee.step, exactly=exactly)
        found: dict[str, Any] = {"resumed": True, "resumed_exactly": exactly}
        found["resumed_at_step"] = self.trainee.step
        if not exactly:
            found["resumed_inexactly_because"] = (
                "device, versions or plan differ from the checkpoint's"
            )
        return found

    def run(self, should_stop: Callable[[], StopReason | None]) -> StopReason | None:
        """Train to the end or until told to stop."""
        return train(
            self.trainee,
            self._lesson,
            report=self._report,
            should_stop=should_stop,
            checkpoint=self._checkpoint,
        )

    def stopped(self, reason: StopReason) -> StoppedEvent:
        """What is said of a job that was stopped; a drained one leaves a checkpoint."""
        path = self._checkpoint() if reason == "drain" else None
        return StoppedEvent(
            reason=reason, step=self.trainee.step, checkpoint=str(path) if path else None
        )

    def _checkpoint(self) -> Path:
        path = save_checkpoint(self.trainee, Path(self._command.checkpoint_dir), **self._fits)
        self._report(CheckpointEvent(step=self.trainee.step, path=str(path)))
        return path

    def _log(self, level: Any, event: str, **fields: Any) -> None:
        self._report(LogEvent(level=level, event=event, fields=fields))


def _prepare(
    command: TrainCommand, model: LoadedBaseModel, report: Report
) -> tuple[list[Picture], list[BadPicture], Plan, Lesson]:
    rules, arithmetic = command.parameters, model.arithmetic
    if arithmetic.reason:
        changed = {
            "requested": rules.mixed_precision,
            "used": arithmetic.precision,
            "reason": arithmetic.reason,
        }
        report(LogEvent(event="precision_changed", fields=changed))
    pictures, bad = read_pictures(command.images, rules.resolution, rules.on_bad_image)
    for item in bad:
        left_out = {"index": item.file.index, "source": item.file.source, "reason": item.reason}
        report(LogEvent(level="warning", event="picture_left_out", fields=left_out))
    _warn_of_duplicates(pictures, report)
    plan = make_plan(
        rules,
        len(pictures),
        free_bytes=free_memory_bytes(arithmetic.device),
        launch=command.launch,
    )
    report(LogEvent(event="training_planned", fields=asdict(plan)))
    lesson = Lesson(
        dataset=encode(model, pictures, mirrored=rules.random_flip),
        schedule=model.schedule,
        prediction_type=rules.prediction_type or model.prediction_type,
        parameters=rules,
        plan=plan,
        seed=command.seed,
        compile_cache=Path(command.compile_cache_dir) if command.compile_cache_dir else None,
    )
    # What the result says of a picture needs no pixels, and a thousand of them are gigabytes.
    return [replace(one, pixels=torch.empty(0)) for one in pictures], bad, plan, lesson


def _warn_of_duplicates(pictures: list[Picture], report: Report) -> None:
    first: dict[str, str] = {}
    for picture in pictures:
        known = first.setdefault(picture.sha256, picture.file.source)
        if known != picture.file.source:
            fields = {"source": picture.file.source, "same_as": known}
            report(LogEvent(level="warning", event="picture_is_a_duplicate", fields=fields))


def _metadata(
    command: TrainCommand,
    model: LoadedBaseModel,
    plan: Plan,
    pictures: list[Picture],
    bad: list[BadPicture],
    resumed: dict[str, Any],
    clock: dict[str, float],
) -> dict[str, Any]:
    rules = command.parameters
    steps_here = plan.total_steps - resumed.get("resumed_at_step", 0)
    return {
        "training_epochs": plan.total_epochs,
        "training_steps": plan.total_steps,
        "lora_rank": rules.rank,
        "lora_alpha": rules.lora_alpha,
        "lora_dropout": rules.lora_dropout,
        "target_modules": list(rules.target_modules),
        "learning_rate": rules.learning_rate,
        "resolution": rules.resolution,
        "train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "plan": asdict(plan),
        "mixed_precision": model.arithmetic.precision,
        "seed": command.seed,
        "base_model": command.base_model.name,
        "prediction_type": rules.prediction_type or model.prediction_type,
        "device": device_name(model.arithmetic.device),
        "images_used": len(pictures),
        "images_skipped": [
            {"index": item.file.index, "source": item.file.source, "reason": item.reason}
            for item in bad
        ],
        **resumed,
        "training_seconds": round(clock["training"], 3),
        "steps_per_second": round(steps_here / max(clock["training"], 1e-9), 3),
    }


def _export(
    command: TrainCommand,
    model: LoadedBaseModel,
    trainee: Trainee,
    plan: Plan,
    metadata: dict[str, Any],
    pictures: list[Picture],
    clock: dict[str, float],
) -> FinishedEvent:
    folder, rules = Path(command.output_dir), command.parameters
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
            "prediction_type": metadata["prediction_type"],
        },
    )
    verify_adapter(
        trainee.unet,
        files=adapters,
        fresh_unet=lambda: unet_of_same_weights(trainee.unet),
    )
    losses = trainee.losses.tolist()
    metrics = folder / "metrics.jsonl"
    metrics.write_text(
        "".join(
            json.dumps({"step": step, "loss": loss, "learning_rate": rate}) + "\n"
            for step, (loss, rate) in enumerate(zip(losses, trainee.rates.tolist(), strict=True), 1)
        )
    )
    files = [_output(path, "application/octet-stream") for path in adapters]
    files.append(_output(metrics, "application/jsonl"))
    manifest = folder / "manifest.json"
    manifest.write_text(
        json.dumps(
            {
                "job_id": command.job_id,
                "style_id": command.style_id,
                "inputs": [
                    {
                        "source": picture.file.source,
                        "sha256": picture.sha256,
                        "caption": picture.file.caption,
                        "width": picture.width,
                        "height": picture.height,
                    }
                    for picture in pictures
                ],
                "parameters": rules.model_dump(mode="json"),
                "base_model": command.base_model.model_dump(exclude={"location"}),
                "metadata": metadata,
                "versions": versions(),
                "stage_seconds": clock,
                "files": {file.name: file.sha256 for file in files},
            },
            indent=2,
        )
    )
    files.append(_output(manifest, "application/json"))
    last_pass = losses[-plan.steps_per_epoch :]
    return FinishedEvent(
        files=files,
        steps=plan.total_steps,
        epochs=plan.total_epochs,
        loss=sum(last_pass) / len(last_pass),
        metadata=metadata,
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in LIBRARIES}


def _output(path: Path, content_type: str) -> OutputFile:
    data = path.read_bytes()
    return OutputFile(
        name=path.name,
        path=str(path),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type=content_type,
    )


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
