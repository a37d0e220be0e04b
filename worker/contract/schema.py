"""The contract as JSON Schema, generated from the models and never written by hand."""

from typing import Any

from pydantic.json_schema import models_json_schema

from worker.contract.events import CompleteBody, FailedBody, ProgressBody
from worker.contract.job import TrainingJob


def json_schema() -> dict[str, Any]:
    """One JSON Schema document: the message and the three webhook bodies under `$defs`."""
    _, document = models_json_schema(
        [
            (TrainingJob, "validation"),
            (ProgressBody, "serialization"),
            (CompleteBody, "serialization"),
            (FailedBody, "serialization"),
        ],
        title="lora-worker: the wire contract",
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
