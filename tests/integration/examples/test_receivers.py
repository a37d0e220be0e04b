"""Backends as the examples show them: right whatever is repeated, late, forged or canceled."""

import json
import threading
import time
import uuid

import pytest
from openapi_schema_validator import OAS31Validator

from tests.integration.examples.conftest import FORMER_SECRET, SECRET
from tests.live_worker import TOKEN, eventually
from worker.contract import examples
from worker.contract.errors import ErrorCode
from worker.contract.events import ENDPOINTS, idempotency_key
from worker.contract.openapi import openapi
from worker.contract.schema import json_schema
from worker.webhooks.allow_list import WebhookAllowList
from worker.webhooks.client import WebhookClient


class Sender:
    """The worker's side: its own client, with events of one job."""

    def __init__(self, backend, *, token=TOKEN, secret=SECRET):
        self.job_id = str(uuid.uuid4())
        self._base = backend.url
        allowed = WebhookAllowList([backend.host], require_https=False)
        self._client = WebhookClient(token, allow_list=allowed, signing_secret=secret)

    def send(self, event, body, sequence=None, now=None):
        method, path = ENDPOINTS[event]
        body = body.model_copy(update={"job_id": self.job_id})
        key = idempotency_key(body.job_id, event, sequence)
        return self._client.send(method, self._base, path, body.body(), key, now=now)

    def progress(self, sequence, percent, **kwargs):
        progress = examples.PROGRESS.progress.model_copy(update={"progress_percent": percent})
        body = examples.PROGRESS.model_copy(update={"progress": progress})
        return self.send("progress", body, sequence, **kwargs)

    def complete(self, **kwargs):
        return self.send("complete", examples.COMPLETE, **kwargs)

    def failed(self, **changes):
        return self.send("failed", examples.FAILED.model_copy(update=changes))


@pytest.fixture
def sender(backend):
    return Sender(backend)


def test_a_job_is_followed_to_its_adapter(backend, sender):
    for sequence, percent in enumerate((0, 40, 100)):
        assert sender.progress(1_000_001 + sequence, percent).kind == "delivered"
        assert backend.job(sender.job_id)["percent"] == percent
    assert backend.job(sender.job_id)["state"] == "running"
    assert sender.complete().kind == "delivered"
    job = backend.job(sender.job_id)
    assert (job["state"], job["model_url"]) == ("completed", examples.COMPLETE.model_url)
    assert (job["style_id"], job["percent"], job["notifications"]) == (123, 100, 1)


def test_a_failure_keeps_its_code_and_sentence(backend, sender):
    sender.failed()
    job = backend.job(sender.job_id)
    assert (job["state"], job["error_code"]) == ("failed", "IMAGE_DOWNLOAD_FAILED")
    assert job["error_message"] == examples.FAILED.error_message


def test_an_event_that_is_delivered_again_has_its_effects_once(backend, sender):
    assert [sender.complete().status for _ in range(3)] == [200] * 3
    assert backend.job(sender.job_id)["notifications"] == 1


def test_an_event_that_is_delivered_twice_at_once_has_its_effects_once(backend, sender):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(sender.complete())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.kind for answer in answers} <= {"delivered", "retry"}
    assert sender.complete().kind == "delivered"
    assert backend.job(sender.job_id)["notifications"] == 1


def test_a_report_that_comes_late_changes_nothing(backend, sender):
    sender.progress(1_000_003, 60)
    for late in (1_000_001, 1_000_003):
        assert sender.progress(late, 20).kind == "delivered"
        assert backend.job(sender.job_id)["percent"] == 60
    # Another worker has taken the job over: its numbers are higher.
    sender.progress(2_000_001, 61)
    assert backend.job(sender.job_id)["percent"] == 61


def test_a_report_after_the_end_changes_nothing(backend, sender):
    sender.complete()
    sender.progress(9_000_000, 50)
    assert (backend.job(sender.job_id)["state"], backend.job(sender.job_id)["percent"]) == (
        "completed",
        100,
    )


def test_a_canceled_job_is_answered_with_gone_and_ends_canceled(backend, sender):
    assert sender.progress(1_000_001, 0).kind == "delivered"
    assert backend.post(f"/jobs/{sender.job_id}/cancel").status_code == 202
    assert sender.progress(1_000_002, 10).kind == "gone"
    assert sender.failed(error_code=ErrorCode.CANCELED).kind == "delivered"
    assert backend.job(sender.job_id)["state"] == "canceled"


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"token": "another"}, 401),
        ({"token": None}, 401),
        ({"secret": None}, 401),
        ({"secret": "whsec_" + "D" * 32}, 401),
    ],
    ids=["another-token", "no-token", "unsigned", "another-secret"],
)
def test_a_stranger_is_refused_and_leaves_no_trace(backend, wrong, status):
    sender = Sender(backend, **wrong)
    answer = sender.complete()
    assert (answer.kind, answer.status) == ("refused", status)
    assert backend.get(f"/jobs/{sender.job_id}").status_code == 404


def test_a_recorded_request_is_refused_later(backend, sender):
    assert sender.complete(now=time.time() - 600).status == 401
    assert backend.get(f"/jobs/{sender.job_id}").status_code == 404


def test_workers_that_still_sign_with_the_former_secret_are_heard(backend):
    assert Sender(backend, secret=FORMER_SECRET).complete().kind == "delivered"


def test_a_body_that_breaks_the_contract_is_a_400(backend, sender):
    broken = examples.COMPLETE.model_copy(update={"style_id": -1})
    assert sender.send("complete", broken).status == 400


def test_a_wish_that_breaks_the_contract_is_answered_by_field(backend):
    answer = backend.post("/styles/10/train", {"images": [], "parameters": {"rank": 0}})
    assert answer.status_code == 422
    assert set(answer.json().get("errors") or answer.json()["detail"]) == {
        "image_urls",
        "parameters.rank",
    }


def test_a_whole_worker_trains_what_the_backend_asks_for(backend, shared_site):
    picture = shared_site.put_picture("training/10/a.jpg")
    wish = {"images": [picture], "parameters": {"max_train_steps": 5}}
    answer = backend.post("/styles/10/train", wish)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["job_id"]
    settings = {"WEBHOOK_ALLOWED_HOSTS": backend.host, "WEBHOOK_SIGNING_SECRET": SECRET}
    with shared_site.worker(**settings):
        eventually(lambda: backend.job(job_id)["state"] == "completed", "the job is completed")
    job = backend.job(job_id)
    assert (
        job["model_url"] == f"s3://{shared_site.results}/models/style_10/lora_weights.safetensors"
    )
    assert (job["percent"], job["notifications"]) == (100, 1)


def test_a_whole_worker_stops_what_the_backend_cancels(backend, shared_site):
    picture = shared_site.put_picture("training/10/a.jpg")
    wish = {"images": [picture], "parameters": {"max_train_steps": 50_000}}
    job_id = backend.post("/styles/10/train", wish).json()["job_id"]
    settings = {"WEBHOOK_ALLOWED_HOSTS": backend.host, "WEBHOOK_SIGNING_SECRET": SECRET}
    with shared_site.worker(**settings) as worker:
        worker.wait_for_log("stage_started", stage="training")
        backend.post(f"/jobs/{job_id}/cancel")
        eventually(lambda: backend.job(job_id)["state"] == "canceled", "the job is canceled")
    assert not shared_site.objects("models/")


def test_the_worker_s_requests_are_what_the_openapi_document_says(site):
    """Every request of a whole job, with its headers, against the published document."""
    document = openapi()
    with site.worker(WEBHOOK_SIGNING_SECRET=SECRET):
        site.publish(site.message("documented"))
        site.wait_for_end("documented")
        site.publish(site.message("refused", style_id=11, parameters={"rank": 0}))
        site.wait_for_end("refused")
    seen = set()
    for request in site.receiver.journal:
        operation = document["paths"][request.path][request.method.lower()]
        seen.add(operation["operationId"])
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        OAS31Validator({**document, **body}).validate(request.json)
        for parameter in operation["parameters"]:
            value = request.headers.get(parameter["name"].lower())
            assert value is not None or not parameter["required"], parameter["name"]
            if value is not None:
                OAS31Validator(parameter["schema"]).validate(value)
    assert seen == {"progress", "complete", "failed"}
    headers, body = site.take("model_training.dead")
    quarantine = {**json_schema(), "$ref": "#/$defs/DeadLetterHeaders"}
    OAS31Validator(quarantine).validate(headers)
    assert json.loads(body)["job_id"] == "refused"
