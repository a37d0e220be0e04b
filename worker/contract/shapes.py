"""The two shapes that a job's message may have on the wire, for its senders and the schema.

What a worker makes of either is a `TrainingJob`, in `job.py`, which is also what refuses messages.
"""

import uuid
from datetime import datetime
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from worker.contract.job import JOB_ID_PATTERN, TrainingJob
from worker.contract.other_names import document_other_names

_IDENTITY = (
    "Identity: two deliveries with one id are one job. Without it AMQP's message_id, without that "
    "a digest of the body."
)


def new_job_id() -> str:
    """An id that no other job has."""
    return str(uuid.uuid4())


class FlatMessage(TrainingJob):
    """A job message with its fields side by side."""

    job_id: str = Field(
        default_factory=new_job_id,
        pattern=f"^{JOB_ID_PATTERN}$",
        validation_alias=AliasChoices("job_id", "task_id"),
        description=_IDENTITY,
    )


class EnvelopedMessage(BaseModel):
    """A job message whose fields lie in `data`."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=document_other_names)

    job_id: str = Field(
        default_factory=new_job_id,
        pattern=f"^{JOB_ID_PATTERN}$",
        validation_alias=AliasChoices("task_id", "job_id"),
        description=_IDENTITY,
    )
    type: Literal["model_training"] = Field("model_training", description="What is asked for.")
    data: FlatMessage = Field(description="The job.")
    webhook_url: str | None = Field(
        None,
        max_length=2048,
        validation_alias=AliasChoices("webhook_url", "callback_url"),
        description="Base URL of the backend; cut off from /api/webhooks/ on.",
    )
    created_at: datetime | None = Field(
        None, description="When it was made; tells its age where an operator limits that."
    )
