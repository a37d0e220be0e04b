"""The queues as the broker has them after ours and theirs."""

import pika
import pytest
import structlog

from tests.integration.broker.conftest import eventually
from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Consumer
from worker.broker.topology import Topology, declare, declare_control_queue


def names(topology: Topology) -> list[str]:
    return [topology.main, *(queue.name for queue in topology.own_queues)]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_everything_is_declared_and_again_without_a_complaint(backend, queue_type):
    topology = Topology(queue=f"all-{queue_type}", queue_type=queue_type)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            backend.call(lambda channel: declare(channel, topology))
    assert logs == []
    for name in names(topology):
        assert backend.ready(name) == 0
    backend.call(lambda c: c.exchange_declare(topology.control, "fanout", passive=True))
    backend.call(lambda c: [c.queue_delete(name) for name in names(topology)])


def test_a_backends_plain_declare_succeeds_after_ours(backend, topology):
    backend.call(lambda channel: declare(channel, topology))
    backend.call(lambda c: c.queue_declare(queue="model_training", durable=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-type": "quorum"},
        {"x-max-priority": 5},
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "theirs", "x-max-length": 9},
    ],
    ids=["quorum", "priorities", "limits"],
)
def test_a_main_queue_that_exists_otherwise_is_adopted_and_consumed(
    backend, receiver, topology, arguments
):
    backend.call(lambda c: c.queue_declare(topology.main, durable=True, arguments=arguments))
    with structlog.testing.capture_logs() as logs:
        worker = receiver()
        backend.call(lambda c: c.basic_publish("", topology.main, b"job"))
        worker.finish(worker.next())
    assert not [log for log in logs if log["log_level"] == "warning"]
    # Still theirs: the same declare succeeds.
    backend.call(lambda c: c.queue_declare(topology.main, durable=True, arguments=arguments))


def test_a_queue_of_ours_that_exists_otherwise_is_used_and_named_in_one_warning(
    backend, publisher, topology
):
    backend.call(lambda c: c.queue_declare(topology.dead, durable=True))
    backend.call(
        lambda c: c.queue_declare(topology.parked, durable=True, arguments={"x-message-ttl": 5})
    )
    with structlog.testing.capture_logs() as logs:
        backend.call(lambda channel: declare(channel, topology))
    (warning,) = logs
    assert warning["event"] == "queues_adopted_as_found"
    assert warning["queues"] == [topology.parked, topology.dead]
    publisher.publish(topology.dead, b"", message_id=None, headers=None)
    assert backend.ready(topology.dead) == 1


def test_the_channel_that_declares_stays_open(backend, topology):
    backend.call(lambda c: c.queue_declare(topology.dead, durable=True))

    def use_after(channel):
        declare(channel, topology)
        return channel.queue_declare(topology.main, passive=True).method.message_count

    assert backend.call(use_after) == 0


def test_another_refusal_than_other_arguments_is_not_swallowed(backend):
    topology = Topology(queue="amq.reserved")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"):
        backend.call(lambda channel: declare(channel, topology))


def test_dead_letters_beyond_the_bound_are_refused_not_dropped(backend, publishers, rabbitmq_url):
    topology = Topology(queue="bounded", dead_max_messages=2)
    backend.call(lambda channel: declare(channel, topology))
    publisher = publishers(rabbitmq_url)
    for _ in range(2):
        publisher.publish(topology.dead, b"kept", message_id=None, headers=None)
    with pytest.raises(Exception, match="refused"):
        publisher.publish(topology.dead, b"too many", message_id=None, headers=None)
    assert backend.drain(topology.dead) == [b"kept", b"kept"]


def test_every_worker_hears_the_control_exchange(backend, publisher, topology, rabbitmq_url):
    heard: list[tuple[str, bytes]] = []
    ears = []
    for worker in ("one", "two"):

        def declare_ear(channel, worker=worker):
            declare_control_queue(channel, topology, worker)

        ears.append(
            Consumer(
                BrokerAddress(rabbitmq_url),
                queues=[topology.control_queue(worker)],
                slots=1,
                on_delivery=lambda delivery, worker=worker: heard.append((worker, delivery.body)),
                declare=declare_ear,
                name=f"control-{worker}",
            )
        )
    try:
        for ear in ears:
            ear.start()
        eventually(lambda: all(ear.connected for ear in ears))
        publisher.publish("", b"cancel", message_id=None, headers=None, exchange=topology.control)
        eventually(lambda: sorted(heard) == [("one", b"cancel"), ("two", b"cancel")])
    finally:
        for ear in ears:
            ear.close()
            ear.join(20)
