"""A terminal event is delivered, waits for its next try, or lies among the dead: never nowhere."""

from dataclasses import replace

import pytest

from worker.broker.confirms import PublishFailed
from worker.broker.delivery import Delivery
from worker.broker.inspection import QueuedMessage
from worker.broker.topology import Topology
from worker.contract.examples import COMPLETE, PROGRESS
from worker.jobs.outbox import TRIES_HEADER, OutboxMessage, OutboxSender
from worker.jobs.record import JobRecord
from worker.jobs.replay import fresh_event
from worker.storage.local import LocalStore
from worker.storage.store import StoreUnavailable
from worker.webhooks.client import Answer
from worker.webhooks.retry import RetrySchedule

TAKEN = Answer("delivered", 200, None, "answered 200")
REFUSED = Answer("refused", 404, None, "answered 404")


class Broker:
    """Keeps what is published; takes nothing while `away`."""

    away = False

    def __init__(self):
        self.published = []

    def publish(self, queue, body, *, message_id, headers):
        if self.away:
            raise PublishFailed("the broker takes no messages")
        self.published.append((queue, headers[TRIES_HEADER]))


class Receiver:
    """Answers as it is told to; `meanwhile` happens while it thinks about the end."""

    def __init__(self, answer=TAKEN, meanwhile=lambda: None):
        self.answer, self.meanwhile, self.journal = answer, meanwhile, []

    def send(self, method, base, path, body, key, *, still_ours):
        event = path.rpartition("/")[2]
        self.journal.append(event)
        if event == "complete":
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
        return self.answer


class FlakyStore(LocalStore):
    """Cannot be reached for the names in `away`."""

    away: frozenset[str] = frozenset()

    def read(self, url, **limits):
        self._reach("read")
        return super().read(url, **limits)

    def write(self, url, body, **conditions):
        self._reach("write")
        return super().write(url, body, **conditions)

    def _reach(self, name):
        if name in self.away:
            raise StoreUnavailable("the store is away on purpose")


@pytest.fixture
def store(tmp_path):
    return FlakyStore(tmp_path / "store")


@pytest.fixture
def broker():
    return Broker()


def sender(store, broker, receiver):
    return OutboxSender(
        receiver, broker, Topology(), lambda job_id: JobRecord(store, "b", job_id), RetrySchedule()
    )


def delivery(tries=0, *, redelivered=False, report=True):
    message = OutboxMessage(
        job_id="j",
        style_id=1,
        event="complete",
        base="http://receiver",
        body=COMPLETE.body().decode(),
        queued_at=0.0,
        progress_before=PROGRESS.body().decode() if report else None,
        progress_sequence=7,
    )
    return Delivery(
        queue="model_training.events",
        body=message.model_dump_json().encode(),
        message_id="j:complete",
        headers={TRIES_HEADER: tries},
        redelivered=redelivered,
        slot=0,
        generation=1,
        delivery_tag=1,
        content_type="application/json",
        received_at=0.0,
    )


def test_the_report_at_100_percent_goes_before_the_end(store, broker):
    receiver = Receiver()
    assert sender(store, broker, receiver).handle(delivery())
    assert receiver.journal == ["progress", "complete"]
    assert JobRecord(store, "b", "j").is_delivered()


def test_an_event_that_is_given_up_is_among_the_dead_before_it_counts_as_dealt_with(store, broker):
    out = sender(store, broker, Receiver(REFUSED))
    broker.away = True
    with pytest.raises(PublishFailed):
        out.handle(delivery())
    broker.away = False
    assert out.handle(delivery(redelivered=True))
    assert out.handle(delivery(tries=1))
    assert [queue for queue, _ in broker.published] == [
        "model_training.events.retry.30s",
        "model_training.events.dead",
    ]


def test_no_report_follows_the_end_though_the_broker_has_the_event_twice(store, broker):
    # Its confirm was lost with the connection, so it was published once more.
    receiver = Receiver(meanwhile=lambda: out.handle(delivery()))
    out = sender(store, broker, receiver)
    assert out.handle(delivery())
    assert receiver.journal == ["progress", "complete"]
    assert broker.published == [("model_training.events.retry.30s", 1)]
    assert out.handle(delivery(tries=1))
    assert receiver.journal == ["progress", "complete"]


def test_no_report_follows_the_end_though_the_broker_has_the_event_without_its_report_too(
    store, broker
):
    # Its confirm was lost with the worker, and whoever took the job over announced it once more.
    receiver = Receiver(meanwhile=lambda: out.handle(delivery()))
    out = sender(store, broker, receiver)
    assert out.handle(delivery(report=False))
    assert receiver.journal == ["complete"]
    assert out.handle(delivery(tries=1))
    assert receiver.journal == ["complete"]


def test_an_event_that_was_only_given_back_keeps_its_report(store, broker):
    receiver = Receiver()
    assert sender(store, broker, receiver).handle(delivery(redelivered=True))
    assert receiver.journal == ["progress", "complete"]


def test_an_event_whose_sender_went_away_waits_for_what_it_may_still_send(store, broker):
    assert JobRecord(store, "b", "j").claim_first_send()
    receiver = Receiver()
    assert sender(store, broker, receiver).handle(delivery(redelivered=True))
    assert receiver.journal == []
    assert broker.published == [("model_training.events.retry.30s", 1)]


def test_while_the_store_is_away_an_event_waits_as_a_copy_and_nothing_is_sent(store, broker):
    receiver = Receiver()
    store.away = frozenset({"read", "write"})
    assert sender(store, broker, receiver).handle(delivery())
    assert receiver.journal == []
    assert broker.published == [("model_training.events.retry.30s", 0)]


def test_an_event_that_was_taken_and_could_not_be_marked_comes_again_without_its_report(
    store, broker
):
    receiver = Receiver()
    out = sender(store, broker, receiver)
    receiver.meanwhile = lambda: setattr(store, "away", frozenset({"write"}))
    assert out.handle(delivery())
    assert broker.published == [("model_training.events.retry.30s", 1)]
    store.away = frozenset()
    assert out.handle(delivery(tries=1))
    assert receiver.journal == ["progress", "complete", "complete"]


def test_an_event_that_is_replayed_is_sent_at_once_without_its_report(store, broker):
    receiver = Receiver(REFUSED)
    out = sender(store, broker, receiver)
    out.handle(delivery())
    dead = QueuedMessage(delivery().body, "j:complete", {})
    receiver.answer = TAKEN
    replayed = fresh_event(dead, JobRecord(store, "b", "j"))
    assert out.handle(replace(delivery(), body=replayed.body))
    assert receiver.journal == ["progress", "complete", "complete"]
    assert JobRecord(store, "b", "j").is_delivered()
