"""The three webhooks as an OpenAPI document: what a receiver has to offer.

They are `paths`, not `webhooks`, although they are ones: path and method are fixed, so a backend
can generate its routes from the document, or run a stand-in of itself.
"""

from typing import Any

from worker import __version__
from worker.contract import examples
from worker.contract.events import ENDPOINTS, EventName
from worker.contract.schema import definitions

_TOLD: dict[EventName, tuple[str, str]] = {
    "progress": (
        "How far a job is",
        "At once when the job is taken up, every 30 seconds, and at 100 % before `complete`. Best "
        "effort: the newest counts, nothing is sent twice, and none comes after a terminal event. "
        "Answer 410 to cancel the job.",
    ),
    "complete": (
        "A job is done and its adapter stored",
        "One terminal event a job, delivered at least once and with one Idempotency-Key.",
    ),
    "failed": (
        "A job has ended without an adapter",
        "One terminal event a job, delivered at least once and with one Idempotency-Key. "
        "`CANCELED` among them is no failure but a wish that was granted.",
    ),
}

#: What the worker makes of an answer.
_ANSWERS = {
    "2XX": "Taken.",
    "408": "Tried again.",
    "425": "Tried again.",
    "429": "Tried again; `Retry-After` is honoured.",
    "4XX": "Not tried again. A terminal event goes to the dead-letter queue, where an operator can "
    "replay it.",
    "5XX": "Tried again; `Retry-After` is honoured. A terminal event for about three days, a "
    "progress report not at all: the next one is newer.",
}

#: What both documents say of the bearer token.
SECURITY_SCHEMES = {
    "internalToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The operator's INTERNAL_API_TOKEN.",
    }
}


def openapi() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    schemas = definitions("#/components/schemas/{model}")
    used = ("ProgressBody", "Progress", "CompleteBody", "TrainingMetric", "FailedBody", "ErrorCode")
    headers = schemas["WebhookHeaders"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lora-worker: webhooks",
            "version": __version__,
            "description": "What the training worker calls at a backend. Redirects are never "
            "followed; unknown fields may come with later versions.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "{base}",
                "description": "`webhook_url` of the job's message, up to /api/webhooks/.",
                "variables": {"base": {"default": "https://api.example.com"}},
            }
        ],
        "security": [{"internalToken": []}],
        "paths": {
            ENDPOINTS[name][1]: {ENDPOINTS[name][0].lower(): _operation(name, headers)}
            for name in _TOLD
        },
        "components": {
            "securitySchemes": SECURITY_SCHEMES,
            "schemas": {name: schemas[name] for name in used},
        },
    }


def _operation(name: EventName, headers: dict[str, Any]) -> dict[str, Any]:
    summary, description = _TOLD[name]
    example = examples.EVENTS[name]
    gone = {"410": {"description": "The job is canceled."}} if name == "progress" else {}
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": [
            _parameter(n, schema_, headers) for n, schema_ in headers["properties"].items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{type(example).__name__}"},
                    "example": example.model_dump(mode="json"),
                }
            },
        },
        "responses": {s: {"description": text} for s, text in _ANSWERS.items()} | gone,
    }


def _parameter(name: str, schema: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
    """One header. A header that is not sent is absent, never null."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    kept = {k: v for k, v in options[0].items() if k not in ("title", "description", "default")}
    return {
        "name": name,
        "in": "header",
        "required": name in headers["required"],
        "description": schema["description"],
        "schema": kept,
    }
