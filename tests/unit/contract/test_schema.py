"""The published schema says what the models do."""

import json
from pathlib import Path

from worker.contract.errors import ErrorCode
from worker.contract.events import ENDPOINTS, FailedBody, idempotency_key
from worker.contract.schema import json_schema


def test_the_published_schema_is_the_one_that_the_models_give():
    published = Path("docs/contract.schema.json").read_text()
    assert json.loads(published) == json_schema()


def test_the_schema_holds_the_message_and_the_three_bodies():
    assert {"TrainingJob", "ProgressBody", "CompleteBody", "FailedBody"} <= set(
        json_schema()["$defs"]
    )


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
