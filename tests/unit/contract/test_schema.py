"""The published documents say what the models do, and what the worker takes and sends."""

import gzip
import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate

from worker.contract import examples
from worker.contract.asyncapi import asyncapi
from worker.contract.errors import ErrorCode, InvalidJob
from worker.contract.events import ENDPOINTS, FailedBody, idempotency_key
from worker.contract.headers import DeadLetterHeaders
from worker.contract.job import parse_message
from worker.contract.openapi import openapi
from worker.contract.parameters import TrainingParameters
from worker.contract.schema import json_schema

#: AsyncAPI's own schema of its documents, as the npm package @asyncapi/specs 6.11.1 (Apache-2.0)
#: has it.
ASYNCAPI_SCHEMA = Path(__file__).parent / "asyncapi-3.0.0.schema.json.gz"

SCHEMA = json_schema()


def valid(name, value):
    """Whether `value` is what the published schema calls `name`."""
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).is_valid(value)


def taken(message):
    """Whether the worker takes it."""
    try:
        parse_message(json.dumps(message).encode())
    except InvalidJob:
        return False
    return True


# --- the documents, by their own tools


def test_the_json_schema_is_one_and_holds_messages_bodies_and_headers():
    Draft202012Validator.check_schema(json_schema())
    assert set(json_schema()["$defs"]) >= {
        *("FlatMessage", "EnvelopedMessage", "ProgressBody", "CompleteBody", "FailedBody"),
        *("WebhookHeaders", "DeadLetterHeaders"),
    }


def test_the_openapi_document_is_valid():
    validate(openapi())


def test_the_asyncapi_document_is_valid():
    rules = Draft7Validator(json.loads(gzip.decompress(ASYNCAPI_SCHEMA.read_bytes())))
    assert [error.message for error in rules.iter_errors(asyncapi())] == []
    spoiled = asyncapi()
    spoiled["operations"]["takeJob"]["action"] = "take"
    assert not rules.is_valid(spoiled)


@pytest.mark.parametrize("document", [asyncapi(), openapi()], ids=["asyncapi", "openapi"])
def test_every_reference_of_a_document_leads_somewhere(document):
    def references(part):
        if isinstance(part, dict):
            yield from (v for k, v in part.items() if k == "$ref")
            yield from (r for v in part.values() for r in references(v))
        elif isinstance(part, list):
            yield from (r for v in part for r in references(v))

    found = set(references(document))
    assert found
    for reference in found:
        target = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_the_openapi_document_has_the_three_requests():
    paths = openapi()["paths"]
    assert {(path, *operations) for path, operations in paths.items()} == {
        (path, method.lower()) for method, path in ENDPOINTS.values()
    }


def test_the_asyncapi_document_has_the_queue_as_backends_declare_it():
    bindings = asyncapi()["channels"]["jobs"]["bindings"]["amqp"]
    assert bindings["queue"]["name"] == "model_training"
    assert bindings["queue"]["durable"]
    assert "arguments" not in bindings["queue"]


# --- the messages


@pytest.mark.parametrize("message", [examples.FLAT, examples.ENVELOPED], ids=["flat", "enveloped"])
def test_the_published_examples_are_jobs(message):
    assert taken(message)
    assert valid("FlatMessage" if message is examples.FLAT else "EnvelopedMessage", message)


def test_every_name_of_a_field_is_published():
    for name in ("epochs", "num_train_epochs"):
        message = examples.FLAT | {"parameters": {name: 3}}
        assert taken(message)
        assert valid("FlatMessage", message)
    for names in (("task_id", "images", "callback_url"), ("job_id", "image_urls", "webhook_url")):
        values = ("j", [{"url": "gs://b/k.png", "caption": "a"}], "https://b.example")
        message = {"style_id": 1, **dict(zip(names, values, strict=True))}
        assert taken(message)
        assert valid("FlatMessage", message)


WRONG = [
    {"style_id": 0},
    {"style_id": "10"},
    {"style_id": None},
    {"image_urls": []},
    {"image_urls": ["ftp://host/a.jpg"]},
    {"image_urls": [{"caption": "no address"}]},
    {"image_urls": [{"url": "/etc/passwd"}]},
    {"image_urls": "s3://b/k"},
    {"job_id": "not/an/id"},
    {"trigger_word": "x" * 101},
    {"tags": "one"},
    {"parameters": {"rank": 0}},
    {"parameters": {"rank": 16, "lora_rank": 16}},
    {"parameters": {"ranks": 16}},
    {"parameters": {"learning_rate": "fast"}},
    {"parameters": {"target_modules": "everything"}},
    {"parameters": {"target_modules": []}},
    {"parameters": {"target_modules": ["to q"]}},
    {"parameters": {"gradient_checkpointing": "often"}},
    {"parameters": {"resolution": 513}},
]


@pytest.mark.parametrize("change", WRONG, ids=json.dumps)
def test_the_schema_refuses_what_the_worker_refuses(change):
    message = examples.FLAT | change
    assert not taken(message)
    assert not valid("FlatMessage", message)


@pytest.mark.parametrize("missing", ["style_id", "image_urls"])
def test_the_schema_requires_what_the_worker_requires(missing):
    message = {name: value for name, value in examples.FLAT.items() if name != missing}
    assert not taken(message)
    assert not valid("FlatMessage", message)


def test_a_preset_and_every_default_are_valid():
    parameters = TrainingParameters().model_dump(mode="json") | {"target_modules": "attn-mlp"}
    message = examples.FLAT | {"parameters": parameters}
    assert taken(message)
    assert valid("FlatMessage", message)


# --- the events and the quarantine


def test_the_error_codes_are_the_closed_list_of_the_contract():
    listed = (
        "TRAINING_FAILED INVALID_JOB IMAGE_DOWNLOAD_FAILED INVALID_IMAGE BASE_MODEL_UNAVAILABLE "
        "GPU_OUT_OF_MEMORY NON_FINITE_LOSS UPLOAD_FAILED TIME_LIMIT_EXCEEDED WORKER_CRASHED "
        "CANCELED"
    )
    assert {code.value for code in ErrorCode} == set(listed.split())


def test_the_failed_body_has_the_fields_that_receivers_read():
    body = FailedBody(style_id=1, job_id="j", error_message="no", error_code=ErrorCode.INVALID_JOB)
    assert json.loads(body.body()) == {
        "style_id": 1,
        "job_id": "j",
        "error_message": "no",
        "error_code": "INVALID_JOB",
    }


def test_endpoints_and_keys_are_the_contract_s():
    assert ENDPOINTS == {
        "progress": ("PATCH", "/api/webhooks/training/progress"),
        "complete": ("POST", "/api/webhooks/training/complete"),
        "failed": ("POST", "/api/webhooks/training/failed"),
    }
    assert idempotency_key("j", "complete") == "j:complete"
    assert idempotency_key("j", "progress", 3) == "j:progress:3"


@pytest.mark.parametrize("event", examples.EVENTS)
def test_a_receiver_may_meet_fields_of_later_versions(event):
    body = examples.EVENTS[event]
    sent = json.loads(body.body()) | {"of_a_later_version": 1}
    assert valid(type(body).__name__, sent)
    del sent["style_id"]
    assert not valid(type(body).__name__, sent)


def test_the_headers_of_a_dead_letter_are_the_published_ones():
    headers = DeadLetterHeaders.model_validate(examples.DEAD_LETTER_HEADERS).headers()
    assert headers == examples.DEAD_LETTER_HEADERS
    assert valid("DeadLetterHeaders", headers)


def test_a_long_reason_is_cut_to_what_a_header_may_hold():
    told = DeadLetterHeaders(
        job_id="j", code=ErrorCode.INVALID_JOB, message="x" * 5000, worker="w", version="1"
    )
    assert len(told.headers()["x-lora-message"]) == 1000
