"""One of each: what the published documents show, and the tests send."""

from typing import Any

from worker.contract.errors import ErrorCode
from worker.contract.events import (
    CompleteBody,
    EventName,
    FailedBody,
    Progress,
    ProgressBody,
    TrainingMetric,
)

_JOB_ID = "550e8400-e29b-41d4-a716-446655440000"

FLAT: dict[str, Any] = {
    "style_id": 10,
    "image_urls": ["s3://stylelicense-media/training/10/a.jpg"],
    "webhook_url": "https://api.example.com",
}

ENVELOPED: dict[str, Any] = {
    "task_id": _JOB_ID,
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": ["s3://stylelicense-media/training/123/1.jpg"],
        "tags": ["watercolor", "portrait"],
        "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1},
    },
    "webhook_url": "https://api.example.com/api/webhooks/training/123/status",
    "created_at": "2025-01-20T10:00:00.000Z",
}

PROGRESS = ProgressBody(
    style_id=123,
    job_id=_JOB_ID,
    progress=Progress(
        current_epoch=50,
        total_epochs=200,
        progress_percent=25,
        estimated_seconds=900,
        stage="training",
        current_step=50,
        total_steps=200,
        loss=0.0912,
    ),
)

COMPLETE = CompleteBody(
    style_id=123,
    job_id=_JOB_ID,
    model_url="s3://stylelicense-models/models/style_123/lora_weights.safetensors",
    model_path="s3://stylelicense-models/models/style_123/lora_weights.safetensors",
    metadata={"training_epochs": 200, "lora_rank": 16, "lora_alpha": 32.0},
    training_metric=TrainingMetric(loss=0.0874, epochs=200),
)

FAILED = FailedBody(
    style_id=123,
    job_id=_JOB_ID,
    error_message="s3://stylelicense-media/training/123/1.jpg does not exist; send a picture that "
    "does.",
    error_code=ErrorCode.IMAGE_DOWNLOAD_FAILED,
)

EVENTS: dict[EventName, ProgressBody | CompleteBody | FailedBody] = {
    "progress": PROGRESS,
    "complete": COMPLETE,
    "failed": FAILED,
}

DEAD_LETTER_HEADERS: dict[str, Any] = {
    "x-lora-job-id": _JOB_ID,
    "x-lora-code": "IMAGE_DOWNLOAD_FAILED",
    "x-lora-message": FAILED.error_message,
    "x-lora-failed-at": "2025-01-20T10:00:07+00:00",
    "x-lora-worker": "worker-1-4711",
    "x-lora-version": "0.1.0",
}
