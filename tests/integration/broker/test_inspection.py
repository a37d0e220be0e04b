"""A person looks into a queue: everything is seen, and nothing is lost by it."""

import tracemalloc

import pika
import pytest

from tests.integration.broker.conftest import eventually
from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress
from worker.broker.inspection import QueuedMessage, look_at, move, purge

#: More looks than a quorum queue of RabbitMQ 4 forgives a message that comes back by itself.
MANY_LOOKS = 25

MEBIBYTE = 2**20


@pytest.fixture(params=["classic", "quorum"])
def quarantine(request, backend):
    """Three messages in a queue of either type."""
    name = f"quarantine-{request.param}"
    arguments = {"x-queue-type": request.param}
    backend.call(lambda c: c.queue_declare(name, durable=True, arguments=arguments))
    backend.publish(b"1", b"2", b"3", queue=name)
    yield name
    backend.call(lambda c: c.queue_delete(name))


def body(message: QueuedMessage) -> bytes:
    return message.body


def test_who_looks_again_and_again_loses_nothing(backend, quarantine, rabbitmq_url):
    for _ in range(MANY_LOOKS):
        assert look_at(BrokerAddress(rabbitmq_url), quarantine, body) == [b"1", b"2", b"3"]
    assert backend.ready(quarantine) == 3


def test_what_was_taken_is_back_before_its_connection_ends(quarantine, rabbitmq_url, mocker):
    """A quorum queue counts what a lost channel brings back, and drops it after so many times."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as watching:
        channel = watching.channel()
        close = pika.BlockingConnection.close

        def ready():
            return channel.queue_declare(quarantine, passive=True).method.message_count

        def close_when_all_is_back(connection):
            assert eventually(lambda: ready() == 3, seconds=5)
            close(connection)

        mocker.patch.object(pika.BlockingConnection, "close", close_when_all_is_back)
        assert look_at(BrokerAddress(rabbitmq_url), quarantine, body) == [b"1", b"2", b"3"]


def test_who_cannot_be_told_of_gives_everything_back(backend, quarantine, rabbitmq_url):
    with pytest.raises(ZeroDivisionError):
        look_at(BrokerAddress(rabbitmq_url), quarantine, lambda message: 1 / 0)
    assert backend.ready(quarantine) == 3


def test_a_queue_is_seen_to_its_end_however_long(backend, quarantine, rabbitmq_url):
    """And it is as long for whoever looks next: a classic queue takes its time to take back."""
    backend.publish(*[b"4"] * 2000, queue=quarantine)
    for _ in range(2):
        assert len(look_at(BrokerAddress(rabbitmq_url), quarantine, body)) == 2003


def test_of_large_messages_only_what_is_told_is_kept_in_memory(backend, quarantine, rabbitmq_url):
    backend.publish(*[bytes(MEBIBYTE)] * 20, queue=quarantine)
    tracemalloc.start()
    try:
        sizes = look_at(BrokerAddress(rabbitmq_url), quarantine, lambda m: len(m.body))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [1, 1, 1, *[MEBIBYTE] * 20]
    assert most < 8 * MEBIBYTE


def test_what_is_moved_is_gone_and_what_is_not_stays(backend, quarantine, rabbitmq_url):
    backend.call(lambda c: c.queue_declare("elsewhere", durable=True))
    address = BrokerAddress(rabbitmq_url)
    moved = move(address, quarantine, "elsewhere", lambda m: m if m.body == b"2" else None)
    assert (moved, backend.ready(quarantine)) == (1, 2)
    assert backend.drain("elsewhere") == [b"2"]
    assert backend.drain(quarantine) == [b"1", b"3"]


def test_what_comes_back_while_it_is_moved_is_not_moved_again(backend, quarantine, rabbitmq_url):
    assert move(BrokerAddress(rabbitmq_url), quarantine, quarantine, lambda m: m) == 3
    assert backend.ready(quarantine) == 3


def test_an_empty_queue_may_be_looked_at_and_purged(backend, quarantine, rabbitmq_url):
    address = BrokerAddress(rabbitmq_url)
    assert purge(address, quarantine) == 3
    assert look_at(address, quarantine, body) == []
    assert purge(address, quarantine) == 0


def test_a_queue_that_is_not_there_is_named(rabbitmq_url):
    with pytest.raises(PublishFailed, match="queue 'nowhere': 404"):
        look_at(BrokerAddress(rabbitmq_url), "nowhere", body)
