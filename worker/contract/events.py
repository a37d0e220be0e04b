"""What the worker tells a backend: the bodies of the three webhooks, and where each is sent."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.errors import ErrorCode

#: HTTP method and path of each event, below the base URL.
ENDPOINTS: dict[str, tuple[str, str]] = {
    "progress": ("PATCH", "/api/webhooks/training/progress"),
    "complete": ("POST", "/api/webhooks/training/complete"),
    "failed": ("POST", "/api/webhooks/training/failed"),
}

EventName = Literal["progress", "complete", "failed"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    event: ClassVar[EventName]

    style_id: int = Field(gt=0, description="As in the job message.")
    job_id: str = Field(description="As in the job message, or the id that the worker gave it.")

    def body(self) -> bytes:
        """The JSON that is sent, UTF-8."""
        return self.model_dump_json().encode()


class Progress(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    current_epoch: int = Field(ge=0, description="Passes over the pictures begun.")
    total_epochs: int = Field(ge=0, description="Passes in all; 0 until it is known.")
    progress_percent: int = Field(ge=0, le=100, description="0 when taken up, 100 when stored.")
    estimated_seconds: int | None = Field(
        ge=0, description="Seconds left, from measured step times; null until some are measured."
    )
    stage: str = Field(description="What the worker does now.")
    current_step: int = Field(0, ge=0, description="Optimizer steps done.")
    total_steps: int = Field(0, ge=0, description="Optimizer steps in all; 0 until known.")
    loss: float | None = Field(None, description="Mean training loss since the last report.")
    plan: dict[str, int] | None = Field(
        None, description="How the trainer goes about it; from the training on."
    )


class ProgressBody(_Body):
    """`PATCH {base}/api/webhooks/training/progress`."""

    event: ClassVar[EventName] = "progress"
    progress: Progress


class TrainingMetric(BaseModel):
    """Measured figures, for receivers that read `training_metric`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    loss: float = Field(description="Mean training loss at the end, measured.")
    epochs: int = Field(ge=0, description="Passes trained.")


class CompleteBody(_Body):
    """`POST {base}/api/webhooks/training/complete`."""

    event: ClassVar[EventName] = "complete"
    model_url: str = Field(description="Where the adapter lies: s3://bucket/key.")
    model_path: str = Field(description="The same as model_url.")
    metadata: dict[str, Any] = Field(description="How it was trained.")
    training_metric: TrainingMetric


class FailedBody(_Body):
    """`POST {base}/api/webhooks/training/failed`."""

    event: ClassVar[EventName] = "failed"
    error_message: str = Field(description="One sentence for a person.")
    error_code: ErrorCode


def idempotency_key(job_id: str, event: EventName, sequence: int | None = None) -> str:
    """`<job_id>:<event>[:<sequence>]`, the same on every try of one event."""
    return f"{job_id}:{event}" + ("" if sequence is None else f":{sequence}")
