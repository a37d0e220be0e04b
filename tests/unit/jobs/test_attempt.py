"""An attempt that does not end its job gives it back when nothing of it is on its way any more."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from worker.broker.topology import Topology
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.contract.job import TrainingJob
from worker.contract.pipe import FinishedEvent, StopCommand
from worker.jobs.attempt import AttemptRules, Attempts
from worker.jobs.claimed_job import Interrupted
from worker.jobs.control import RunningJobs
from worker.jobs.intake import Order
from worker.jobs.record import JobRecord, Lease
from worker.observability.activity import Activity
from worker.storage.local import LocalStore

LEASE = Lease(owner="me", epoch=1, fingerprint="f")


def turn():
    return SimpleNamespace(claimed=lambda: None, end=lambda: None, trainer=None)


class SlowReceiver:
    """Takes a report, and answers once `asked` is set."""

    goes_on = True

    def __init__(self):
        self.has_one, self.asked, self.answered = (threading.Event() for _ in range(3))

    def __call__(self, base, body, sequence, still_ours):
        self.has_one.set()
        self.asked.wait(60)
        self.answered.set()
        return self.goes_on


class Held:
    """Notes what the receiver had answered when the message went back to its queue."""

    def __init__(self, receiver):
        self.receiver, self.given_back = receiver, None

    def requeue(self):
        self.given_back = ("requeue", self.receiver.answered.is_set())

    def move(self, queue, **headers):
        self.given_back = ("move", self.receiver.answered.is_set())

    def park(self):
        self.given_back = ("park", self.receiver.answered.is_set())


@contextmanager
def an_attempt(tmp_path, stages, *, lease_term_seconds=7200.0, stopping=lambda: False):
    """Attempts, an order and a receiver, which has been told of the job by the time it ends."""
    receiver = SlowReceiver()
    rules = AttemptRules(
        bucket="b",
        work_dir=tmp_path / "work",
        max_attempts=3,
        lease_term_seconds=lease_term_seconds,
        lease_renew_seconds=3600,
        progress_interval_seconds=3600,
        max_age_seconds=None,
    )
    job = TrainingJob.model_validate(
        {"job_id": "j", "style_id": 10, "image_urls": ["s3://media/a.jpg"]}
    )
    order = Order(
        job=job,
        base="http://receiver",
        base_model=BaseModelEntry(name="tiny", location="nowhere"),
        fingerprint="f",
        record=JobRecord(LocalStore(tmp_path / "store"), "b", "j"),
        ignored_fields=(),
        sent_at=None,
        nameless=False,
    )
    attempts = Attempts(
        rules=rules,
        topology=Topology(),
        stages=SimpleNamespace(train=stages(receiver), store_files=lambda *args: None),
        running=RunningJobs(),
        send_progress=receiver,
        stopping=stopping,
        activity=Activity(),
    )
    yield attempts, order, receiver
    receiver.asked.set()


def interrupted(receiver):
    def train(claimed, trainer):
        assert receiver.has_one.wait(60)
        threading.Timer(0.2, receiver.asked.set).start()
        raise Interrupted(StopCommand(reason="drain"))

    return train


def failed(receiver):
    def train(claimed, trainer):
        assert receiver.has_one.wait(60)
        threading.Timer(0.2, receiver.asked.set).start()
        raise JobError(ErrorCode.IMAGE_DOWNLOAD_FAILED, "the store is away", transient=True)

    return train


@pytest.mark.parametrize(("stages", "way"), [(interrupted, "requeue"), (failed, "move")])
def test_it_goes_back_after_the_report_on_its_way_has_arrived(tmp_path, stages, way):
    # Whoever has it next reports at least as much, and that must not arrive first.
    with an_attempt(tmp_path, stages) as (attempts, order, receiver):
        held = Held(receiver)
        assert attempts.run(order, LEASE, None, held, turn()) is None
    assert held.given_back == (way, True)


def test_what_was_trained_by_a_worker_that_was_replaced_is_not_committed(tmp_path):
    # It stood still for longer than its lease holds, and no renewal has told it yet.
    def replaced(receiver):
        def train(claimed, trainer):
            assert receiver.has_one.wait(60)
            receiver.asked.set()
            _, stored = claimed.record.lease()
            newer = LEASE.model_copy(update={"owner": "another", "epoch": 2})
            claimed.record.claim(newer, stored)
            return FinishedEvent(files=[], steps=1, epochs=1, loss=0.5, metadata={})

        return train

    with an_attempt(tmp_path, replaced, lease_term_seconds=0.0) as (attempts, order, receiver):
        held = Held(receiver)
        assert attempts.run(order, LEASE, None, held, turn()) is None
    assert held.given_back[0] == "park"


def finished(receiver):
    def train(claimed, trainer):
        assert receiver.has_one.wait(60)
        threading.Timer(0.2, receiver.asked.set).start()
        return FinishedEvent(files=[], steps=1, epochs=1, loss=0.5, metadata={})

    return train


def test_a_receiver_that_ends_the_job_with_its_last_answer_is_heard(tmp_path):
    with an_attempt(tmp_path, finished) as (attempts, order, receiver):
        receiver.goes_on = False
        ended = attempts.run(order, LEASE, None, Held(receiver), turn())
    assert ended.result.outcome == "canceled"
    assert ended.last_progress is None


def test_a_first_claim_that_was_cut_short_is_no_reason_to_be_superseded_for_ever(tmp_path):
    with an_attempt(tmp_path, finished) as (attempts, order, receiver):
        order.record.claim(LEASE, None)  # and its worker ended before it noted the time
        _, stored = order.record.lease()
        second = LEASE.model_copy(update={"epoch": 2})
        ended = attempts.run(order, second, stored, Held(receiver), turn())
    assert ended.result.accepted_at > 0


def test_a_trainer_that_a_drain_had_to_kill_costs_no_attempt(tmp_path):
    def killed(receiver):
        def train(claimed, trainer):
            receiver.asked.set()
            raise JobError(ErrorCode.WORKER_CRASHED, "it did not stop in time", transient=True)

        return train

    last = LEASE.model_copy(update={"attempts": 3})
    with an_attempt(tmp_path, killed, stopping=lambda: True) as (attempts, order, receiver):
        held = Held(receiver)
        assert attempts.run(order, last, None, held, turn()) is None
        assert order.record.lease()[0].state == "released"
    assert held.given_back[0] == "requeue"
