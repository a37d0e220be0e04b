"""What does a finished job say of itself? Metadata, metrics, manifest, the list of its files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker.contract.dataset import PictureReport
from worker.contract.pipe import FinishedEvent, OutputFile, TrainCommand
from worker.training.base_model import LoadedBaseModel
from worker.training.device import device_name
from worker.training.images import Pictures
from worker.training.plan import Plan
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
) -> dict[str, Any]:
    """What the `complete` webhook says of the training, as far as it is known before the export."""
    rules = command.parameters
    steps_here = plan.total_steps - resumed.get("resumed_at_step", 0)
    return {
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
        **resumed,
        "training_seconds": round(training_seconds, 3),
        "steps_per_second": round(steps_here / max(training_seconds, 1e-9), 3),
    }


def write_result(
    command: TrainCommand,
    trainee: Trainee,
    plan: Plan,
    pictures: Pictures,
    rows: Sequence[PictureReport],
    *,
    adapters: Sequence[Path],
    metadata: dict[str, Any],
    stage_seconds: Mapping[str, float],
) -> FinishedEvent:
    """Write `metrics.jsonl` and `manifest.json` beside the adapter's files, and name them all."""
    folder, losses = Path(command.output_dir), trainee.losses.tolist()
    metrics = folder / "metrics.jsonl"
    curve = trainee.validation.curve
    metrics.write_text(_metrics(losses, trainee.rates.tolist(), curve))
    files = [_described(path, "application/octet-stream") for path in adapters]
    files.append(_described(metrics, "application/jsonl"))
    manifest = folder / "manifest.json"
    content = _manifest(command, pictures) | {
        "dataset": [row.model_dump(mode="json") for row in rows],
        "metadata": metadata,
        "versions": versions(),
        "stage_seconds": dict(stage_seconds),
        "files": {file.name: file.sha256 for file in files},
    }
    manifest.write_text(json.dumps(content, indent=2))
    files.append(_described(manifest, "application/json"))
    last_pass = losses[-plan.steps_per_epoch :]
    return FinishedEvent(
        files=files,
        steps=plan.total_steps,
        epochs=plan.total_epochs,
        loss=sum(last_pass) / len(last_pass),
        metadata=metadata,
    )


def _metrics(losses: list[float], rates: list[float], curve: Sequence[Point]) -> str:
    """One JSON object a line: for each step, from 1; then for each look at fixed pictures."""
    steps = [
        {"step": step, "loss": loss, "learning_rate": rate}
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1)
    ]
    looks = [{"step": step, "validation_loss": loss} for step, loss in curve]
    return "".join(json.dumps(line) + "\n" for line in [*steps, *looks])


def _manifest(command: TrainCommand, pictures: Pictures) -> dict[str, Any]:
    """What went into the job."""
    return {
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
            for picture in pictures.good
        ],
        "parameters": command.parameters.model_dump(mode="json"),
        "base_model": command.base_model.model_dump(exclude={"location"}),
    }


def _described(path: Path, content_type: str) -> OutputFile:
    data = path.read_bytes()
    return OutputFile(
        name=path.name,
        path=str(path),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type=content_type,
    )
