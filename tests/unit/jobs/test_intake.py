"""Which job is in a message? Its identity does not depend on the release that reads it."""

import json
from dataclasses import replace

from worker.broker.delivery import Delivery
from worker.contract.base_model import BaseModelEntry
from worker.contract.job import TrainingJob, parse_message
from worker.contract.parameters import TrainingParameters
from worker.jobs.intake import Intake, fingerprint_of
from worker.jobs.record import JobRecord
from worker.storage.local import LocalStore
from worker.webhooks.allow_list import WebhookAllowList

MESSAGE = {
    "job_id": "j",
    "style_id": 10,
    "image_urls": ["s3://media/a.jpg"],
    "parameters": {"epochs": 3},
}


class LaterParameters(TrainingParameters):
    """Those of a release that knows one more, and has another default."""

    rank: int = 64
    a_new_one: int = 3


class LaterJob(TrainingJob):
    a_new_field: str = "a default"
    parameters: LaterParameters = LaterParameters()


def test_a_release_that_knows_more_parameters_takes_a_job_for_the_same():
    now, later = TrainingJob.model_validate(MESSAGE), LaterJob.model_validate(MESSAGE)
    assert fingerprint_of(now) == fingerprint_of(later)


def test_what_a_lease_of_today_says_is_what_tomorrows_release_looks_for():
    job = parse_message(json.dumps(MESSAGE).encode()).job
    digest = "888ad5ad8d1d9a0603d56b510b1d8dc71a60d66c869e7aee1a8ab7acd582265c"
    assert fingerprint_of(job) == digest


def test_another_content_is_another_job_and_another_id_alone_is_not():
    job = TrainingJob.model_validate(MESSAGE)
    other = TrainingJob.model_validate({**MESSAGE, "parameters": {"epochs": 4}})
    again = TrainingJob.model_validate({**MESSAGE, "job_id": "other"})
    assert fingerprint_of(job) != fingerprint_of(other)
    assert fingerprint_of(job) == fingerprint_of(again)


def test_a_copy_of_a_message_that_came_back_is_its_run_and_no_new_one(tmp_path):
    # Its run ended while the store could not be asked, and the message waited as a copy.
    store = LocalStore(tmp_path / "store")
    body = json.dumps({k: v for k, v in MESSAGE.items() if k != "job_id"}).encode()
    delivery = Delivery(0, 1, 1, "model_training", body, None, {}, True, None, 0.0)
    digest = parse_message(body).job.job_id
    intake = Intake(
        record=lambda job_id: JobRecord(store, "b", job_id),
        catalogue={"tiny": BaseModelEntry(name="tiny", location="/x")},
        default_base_model="tiny",
        allow_list=WebhookAllowList((), require_https=False),
        webhook_base_url=None,
        max_images=10,
    )
    JobRecord(store, "b", digest).commit(intake.read(delivery).canceled(1))
    copy = replace(delivery, headers=delivery.kept_headers(), redelivered=False)
    assert intake.read(copy).job.job_id == digest
    again = replace(delivery, redelivered=False)
    assert intake.read(again).job.job_id == f"{digest}-2"
