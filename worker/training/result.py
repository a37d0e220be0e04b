"""What does a finished job say of itself? Metadata, metrics, report, card, manifest, its files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker.contract.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    PREVIEW_SHEET,
    REPORT_FILE,
    BaseModelName,
    Manifest,
    TrainedPicture,
)
from worker.contract.pipe import FinishedEvent, MemoryReport, OutputFile, TrainCommand
from worker.report.model_card import model_card
from worker.report.page import report_page
from worker.report.preview_sheet import draw_sheet
from worker.training.base_model import LoadedBaseModel
from worker.training.device import device_name
from worker.training.images import Pictures
from worker.training.material import THUMBNAILS, Material
from worker.training.plan import Plan
from worker.training.previews import Drawn
from worker.training.step import Trainee
from worker.training.validation import Point

#: Libraries whose versions a result names.
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "accelerate", "lora-worker")


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in LIBRARIES}


def job_metadata(
    command: TrainCommand,
    model: LoadedBaseModel,
    plan: Plan,
    pictures: Pictures,
    *,
    resumed: Mapping[str, Any],
    training_seconds: float,
    drawing_seconds: float = 0.0,
) -> dict[str, Any]:
    """What the `complete` webhook says of the training, as far as it is known before the export."""
    rules, stepping_seconds = command.parameters, training_seconds - drawing_seconds
    steps_here = plan.total_steps - resumed.get("resumed_at_step", 0)
    encoders = zip(model.family.text_parts, model.text_encoders, strict=True)
    absent = [part.encoder for part, encoder in encoders if encoder.is_absent]
    return {
        **({"absent_text_encoders": absent} if absent else {}),
        "training_epochs": plan.total_epochs,
        "training_steps": plan.total_steps,
        "lora_rank": rules.rank,
        "lora_alpha": rules.lora_alpha,
        "lora_dropout": rules.lora_dropout,
        "target_modules": list(rules.target_modules),
        "use_dora": rules.use_dora,
        "train_text_encoder": rules.train_text_encoder,
        "optimizer": rules.optimizer,
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
        "images_used": len(pictures.good),
        "images_skipped": [
            {"index": item.file.index, "source": item.file.source, "reason": item.reason}
            for item in pictures.bad
        ],
        "claim": command.claim,
        **resumed,
        "training_seconds": round(training_seconds, 3),
        "steps_per_second": round(steps_here / max(stepping_seconds, 1e-9), 3),
    }


_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
}


def write_result(
    command: TrainCommand,
    trainee: Trainee,
    plan: Plan,
    material: Material,
    *,
    adapters: Sequence[Path],
    drawn: Drawn,
    metadata: dict[str, Any],
    environment: dict[str, str],
    memory: MemoryReport,
    stage_seconds: Mapping[str, float],
) -> FinishedEvent:
    """Write what lies beside the adapter's files, the manifest last, and name them all."""
    folder, losses = Path(command.output_dir), trainee.losses.tolist()
    names = [path.name for path in adapters]
    curve = trainee.validation.curve
    (folder / METRICS_FILE).write_text(_metrics(losses, trainee.rates.tolist(), curve))
    names.append(METRICS_FILE)
    if drawn.previews:
        draw_sheet(drawn.previews, folder, folder / PREVIEW_SHEET)
        names.append(PREVIEW_SHEET)
        names += [name for preview in drawn.previews for name in preview.files]
    manifest = Manifest(
        job_id=command.job_id,
        style_id=command.style_id,
        trigger_word=command.trigger_word,
        inputs=_inputs(material.pictures),
        dataset=tuple(material.rows),
        class_pictures=tuple(material.class_rows),
        class_pictures_made=material.prior is not None and material.prior.made > 0,
        parameters=command.parameters.model_dump(mode="json"),
        seed=command.seed,
        base_model=_base_model(command),
        metadata=metadata,
        versions=versions(),
        environment=environment,
        stage_seconds=dict(stage_seconds),
        memory=memory,
        previews=drawn.previews,
        previews_left_out=drawn.left_out,
        files=_digests(folder, names),
    )
    (folder / CARD_FILE).write_text(model_card(manifest))
    (folder / REPORT_FILE).write_text(report_page(manifest, folder, folder / THUMBNAILS))
    names += [CARD_FILE, REPORT_FILE]
    whole = manifest.model_copy(update={"files": _digests(folder, names)})
    (folder / MANIFEST_FILE).write_text(whole.model_dump_json(indent=2))
    last_pass = losses[-plan.steps_per_epoch :]
    return FinishedEvent(
        files=[_described(folder, name) for name in [*names, MANIFEST_FILE]],
        steps=plan.total_steps,
        epochs=plan.total_epochs,
        loss=sum(last_pass) / len(last_pass),
        metadata=metadata | {"previews": [preview.model_dump() for preview in drawn.previews]},
    )


def _metrics(losses: list[float], rates: list[float], curve: Sequence[Point]) -> str:
    """One JSON object a line: for each step, from 1; then for each look at fixed pictures."""
    steps = [
        {"step": step, "loss": loss, "learning_rate": rate}
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1)
    ]
    looks = [{"step": step, "validation_loss": loss} for step, loss in curve]
    return "".join(json.dumps(line) + "\n" for line in [*steps, *looks])


def _inputs(pictures: Pictures) -> tuple[TrainedPicture, ...]:
    return tuple(
        TrainedPicture(
            source=picture.file.source,
            sha256=picture.sha256,
            caption=picture.file.caption,
            width=picture.width,
            height=picture.height,
        )
        for picture in pictures.good
    )


def _base_model(command: TrainCommand) -> BaseModelName:
    entry = command.base_model
    return BaseModelName(
        name=entry.name,
        family=entry.family,
        revision=entry.revision,
        variant=entry.variant,
        hub_id=entry.hub_id,
        license=entry.license,
    )


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _described(folder: Path, name: str) -> OutputFile:
    data = (folder / name).read_bytes()
    return OutputFile(
        name=name,
        path=str(folder / name),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type=_CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream"),
    )
