"""The contract as JSON Schema, generated from the models and never written by hand."""

from typing import Any

from pydantic.json_schema import models_json_schema

from worker.contract.events import CompleteBody, FailedBody, ProgressBody
from worker.contract.headers import DeadLetterHeaders, WebhookHeaders
from worker.contract.shapes import EnvelopedMessage, FlatMessage


def json_schema() -> dict[str, Any]:
    """One JSON Schema document, with all that crosses the wire under `$defs`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lora-worker: the wire contract",
        "$defs": definitions("#/$defs/{model}"),
    }


def definitions(reference: str) -> dict[str, Any]:
    """The schema of each model by its name: both shapes of the message, the bodies, the headers.

    Args:
        reference: how one refers to another, `{model}` for its name.
    """
    _, document = models_json_schema(
        [
            (FlatMessage, "validation"),
            (EnvelopedMessage, "validation"),
            (ProgressBody, "serialization"),
            (CompleteBody, "serialization"),
            (FailedBody, "serialization"),
            (WebhookHeaders, "validation"),
            (DeadLetterHeaders, "validation"),
        ],
        ref_template=reference,
    )
    schemas: dict[str, Any] = document["$defs"]
    for name in ("ProgressBody", "Progress", "CompleteBody", "FailedBody"):
        # The worker sends nothing else today; receivers must bear what later versions add.
        del schemas[name]["additionalProperties"]
    return schemas
