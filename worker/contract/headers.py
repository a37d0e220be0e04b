"""What goes beside a body: the headers of a webhook, and those of a job in quarantine."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from worker.contract.errors import ErrorCode

#: Longest reason in a dead letter's headers, characters.
_REASON_CHARACTERS = 1000


class WebhookHeaders(BaseModel):
    """Headers of every webhook, beside `Authorization: Bearer <INTERNAL_API_TOKEN>`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    idempotency_key: str = Field(
        alias="Idempotency-Key",
        pattern=r"^.+:(progress:[0-9]+|complete|failed)$",
        description="`<job_id>:<event>[:<sequence>]`, the same on every try of one event. Sequence "
        "numbers of one job's progress grow: a higher one is newer.",
    )
    x_request_source: Literal["training-server"] = Field(
        alias="X-Request-Source", description="Who asks."
    )
    webhook_id: str | None = Field(
        None,
        alias="webhook-id",
        description="Standard Webhooks: the Idempotency-Key again. With a signing secret only.",
    )
    webhook_timestamp: str | None = Field(
        None,
        alias="webhook-timestamp",
        pattern="^[0-9]+$",
        description="Standard Webhooks: when this try was made, seconds since 1970.",
    )
    webhook_signature: str | None = Field(
        None,
        alias="webhook-signature",
        description="Standard Webhooks: `v1,` and the HMAC-SHA256 of `id.timestamp.body`.",
    )
    traceparent: str | None = Field(
        None, alias="traceparent", description="W3C trace context, where the worker traces."
    )


class DeadLetterHeaders(BaseModel):
    """AMQP headers of a job in the dead-letter queue; its body is the message as it was sent."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
        alias_generator=lambda name: f"x-lora-{name.replace('_', '-')}",
    )

    job_id: str = Field(description="The job; empty where not even that could be read.")
    code: ErrorCode = Field(description="As in the `failed` webhook.")
    message: str = Field(
        max_length=_REASON_CHARACTERS, description="One sentence for a person, as in the webhook."
    )
    failed_at: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        description="When it was given up, ISO 8601 in UTC.",
    )
    worker: str = Field(description="Who gave it up.")
    version: str = Field(description="That worker's version.")
    attempts: int | None = Field(None, description="Attempts before the last, if there were any.")
    replay_of: str | None = Field(
        None, description="The id that the job had before it was taken out of the quarantine."
    )

    @field_validator("message", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value[:_REASON_CHARACTERS] if isinstance(value, str) else value

    def headers(self) -> dict[str, Any]:
        """By their names on the wire."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
