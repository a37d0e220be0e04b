"""A delivery's way: what is not this worker's to end waits, and what waits is not dropped."""

import json
from types import SimpleNamespace

import pytest

from worker.broker.confirms import PublishFailed
from worker.broker.topology import Topology
from worker.contract.job import parse_message
from worker.jobs import runner
from worker.jobs.attempt import Ended
from worker.jobs.decide import Park, decide
from worker.jobs.intake import Intake
from worker.jobs.record import JobRecord, Lease, Result
from worker.jobs.runner import JobRunner, look
from worker.storage.local import LocalStore
from worker.storage.store import StoreUnavailable
from worker.webhooks.allow_list import WebhookAllowList

TERM_SECONDS = 180.0
MESSAGE = {"job_id": "j", "style_id": 10, "image_urls": ["s3://media/a.jpg"]}


NO_BROKER = PublishFailed("the broker takes no messages")


class Held:
    """A delivery in hand; the broker refuses to take as many copies as `refusals` says."""

    def __init__(self, body, *, refusals=0, refusal=NO_BROKER):
        self.delivery = SimpleNamespace(
            body=body, message_id=None, headers={}, redelivered=False, timestamp=None
        )
        self.job_id, self.refusals, self.refusal = None, refusals, refusal
        self.did, self.lost = [], False

    def ack(self):
        self.did.append("ack")

    def park(self):
        self.did.append("park")

    def requeue(self):
        self.did.append("requeue")

    def copy(self, queue, **headers):
        self.did.append(queue)

    def move(self, queue, **headers):
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        self.did.append(queue)

    def is_lost(self):
        return self.lost

    def close(self):
        pass


class Conclusion:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def conclude(self, result, held, last_progress=None):
        self.told.append(result.outcome)

    def bury(self, held, code, message):
        self.told.append("buried")


@pytest.fixture
def record(tmp_path):
    return JobRecord(LocalStore(tmp_path / "store"), "b", "j")


@pytest.fixture
def conclusion():
    return Conclusion()


@pytest.fixture
def handle(record, conclusion):
    """Has a delivery handled by a worker that knows no base model but `tiny`."""
    intake = Intake(
        record=lambda job_id: record,
        catalogue={},
        default_base_model="tiny",
        allow_list=WebhookAllowList(("receiver",), require_https=False),
        webhook_base_url=None,
        max_images=10,
    )
    attempts = SimpleNamespace(
        rules=SimpleNamespace(lease_term_seconds=TERM_SECONDS),
        activity=SimpleNamespace(ended=lambda *args: None),
        note_end=lambda result: None,
        stopping=lambda: False,
    )
    jobs = JobRunner(
        owner="me",
        intake=intake,
        attempts=attempts,
        conclusion=conclusion,
        topology=Topology(),
        record=lambda job_id: record,
    )

    def handle(held):
        jobs.handle(held, SimpleNamespace(end=lambda: None))
        return held.did

    handle.jobs = jobs
    return handle


def body(**changes):
    return json.dumps({**MESSAGE, **changes}).encode()


BROKEN = body(parameters={"epoch": 3}, webhook_url="http://receiver")
NOBODY_TO_TELL = body(parameters={"epoch": 3})


@pytest.mark.parametrize("message", [BROKEN, NOBODY_TO_TELL])
def test_a_job_that_another_worker_trains_is_not_ended_by_one_that_cannot_read_it(
    handle, record, conclusion, message
):
    record.claim(Lease(owner="another", epoch=1, fingerprint="f"), None)
    assert handle(Held(message)) == ["park"]
    assert record.result() is None
    assert conclusion.told == []


def test_a_broken_message_that_nobody_works_on_fails(handle, record, conclusion):
    lease = Lease(owner="another", epoch=1, fingerprint="f", state="released")
    record.claim(lease, None)
    assert handle(Held(BROKEN)) == ["ack"]
    assert conclusion.told == ["failed"]


def test_what_cannot_be_put_off_is_held_until_it_can_and_not_given_back(handle, mocker):
    mocker.patch.object(runner, "_PUT_OFF_AGAIN_SECONDS", 0.0)
    mocker.patch.object(JobRunner, "_handle", side_effect=StoreUnavailable("away"))
    assert handle(Held(BROKEN, refusals=5)) == ["model_training.retry.30s"]


def test_what_cannot_be_copied_for_a_reason_of_its_own_is_given_back_after_a_while(handle, mocker):
    waited = mocker.patch.object(runner.time, "sleep")
    mocker.patch.object(JobRunner, "_handle", side_effect=StoreUnavailable("away"))
    held = Held(BROKEN, refusals=5, refusal=TypeError("a defect of ours"))
    assert handle(held) == ["requeue"]
    waited.assert_called_once()


def test_what_cannot_be_put_off_and_is_not_ours_any_more_is_let_go(handle, mocker):
    mocker.patch.object(JobRunner, "_handle", side_effect=StoreUnavailable("away"))
    held = Held(BROKEN, refusals=5)
    held.lost = True
    assert handle(held) == ["requeue"]


def test_while_a_report_hangs_at_its_receiver_nobody_else_may_tell_the_end(handle, record):
    job = parse_message(body()).job
    lease = Lease(owner="me", epoch=1, fingerprint="f")
    record.claim(lease, None)
    result = Result(
        outcome="completed",
        epoch=1,
        fingerprint="f",
        job_id=job.job_id,
        style_id=job.style_id,
        event="complete",
        event_body="{}",
        webhook_base="http://receiver",
    )
    held = Held(body())
    ended = Ended(result, None, quiet=False)
    handle.jobs._after_attempt(ended, SimpleNamespace(record=record), held)
    assert held.did == ["park"]
    found, _ = look(record)
    action = decide(found, fingerprint="f", lease_term_seconds=TERM_SECONDS, max_attempts=5)
    assert action == Park()
