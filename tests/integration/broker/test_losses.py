"""Connections, channels, queues and brokers go away; the worker takes no wrong step over it."""

import time
from collections.abc import Iterator

import pytest
import structlog

from tests.integration.broker.conftest import Backend, eventually
from worker.demo.rabbitmq_node import RabbitMQNode


def test_a_lost_connection_brings_the_message_again_and_the_old_answer_is_refused(
    private_rabbitmq_node, private_rabbitmq_url, receivers
):
    backend, worker = Backend(private_rabbitmq_url), receivers(private_rabbitmq_url, slots=2)
    backend.publish(b"job")
    stale = worker.next()
    private_rabbitmq_node.ctl("close_all_connections", "--global", "test")
    # The slot that held it still works on it, so the other one gets it.
    again = worker.next()
    assert (again.body, again.redelivered) == (b"job", True)
    assert again.slot != stale.slot
    assert again.generation != stale.generation
    assert not worker.consumer.ack(stale)
    assert not worker.consumer.requeue(stale)
    worker.finish(again)
    worker.consumer.free(stale.slot)
    backend.publish(b"next", b"next")
    assert {worker.next().slot, worker.next().slot} == {0, 1}
    assert worker.consumer.generation == 2


def test_a_delivery_is_held_until_its_connection_is_lost(
    private_rabbitmq_node, private_rabbitmq_url, receivers
):
    backend, worker = Backend(private_rabbitmq_url), receivers(private_rabbitmq_url, slots=2)
    backend.publish(b"job")
    stale = worker.next()
    assert worker.consumer.holds(stale)
    private_rabbitmq_node.ctl("close_all_connections", "--global", "test")
    again = worker.next()
    assert not worker.consumer.holds(stale)
    assert worker.consumer.holds(again)
    worker.finish(again)
    worker.consumer.free(stale.slot)


def test_a_worker_that_stood_still_for_a_heartbeat_holds_nothing(
    private_rabbitmq_url, receivers, monkeypatch
):
    backend, worker = Backend(private_rabbitmq_url), receivers(private_rabbitmq_url)
    backend.publish(b"job")
    delivery = worker.next()
    clock = time.monotonic
    monkeypatch.setattr("worker.broker.consumer.time.monotonic", lambda: clock() + 31)
    assert not worker.consumer.holds(delivery)
    monkeypatch.undo()
    eventually(lambda: worker.consumer.holds(delivery))
    worker.finish(delivery)


def test_a_slot_whose_message_was_lost_stays_busy_until_it_is_freed(
    private_rabbitmq_node, private_rabbitmq_url, receivers
):
    backend, worker = Backend(private_rabbitmq_url), receivers(private_rabbitmq_url)
    backend.publish(b"job")
    stale = worker.next()
    private_rabbitmq_node.ctl("close_all_connections", "--global", "test")
    eventually(lambda: worker.consumer.generation == 2)
    assert worker.nothing_within(1.0)
    assert backend.ready() == 1
    worker.consumer.free(stale.slot)
    worker.finish(worker.next())


@pytest.fixture(scope="module")
def fragile_node(tmp_path_factory) -> Iterator[RabbitMQNode]:
    """A node that tests may stop and kill, and that takes a message back after 3 s."""
    with RabbitMQNode(
        tmp_path_factory.mktemp("fragile"),
        config="consumer_timeout = 3000",
        advanced="[{rabbit,[{channel_tick_interval,1000}]}].",
    ) as node:
        yield node


def test_a_held_message_that_outlives_the_brokers_time_out_is_not_answered_late(
    fragile_node, receivers
):
    """After the broker's consumer time-out the job is another worker's: too late for an answer."""
    backend, worker = Backend(fragile_node.url), receivers(fragile_node.url, slots=2)
    backend.publish(b"job")
    late = worker.next()
    with structlog.testing.capture_logs() as logs:
        again = worker.next()
        eventually(lambda: logs)
    assert (again.body, again.redelivered) == (b"job", True)
    assert "406 PRECONDITION_FAILED - delivery acknowledgement" in logs[0]["reason"]
    assert not worker.consumer.ack(late)
    worker.finish(again)
    worker.consumer.free(late.slot)
    backend.publish(b"a", b"b")
    first, second = worker.next(), worker.next()
    assert {first.slot, second.slot} == {0, 1}
    worker.finish(first)
    worker.finish(second)
    assert worker.consumer.generation == 1


def test_a_broker_that_restarts_gets_its_worker_back(fragile_node, receivers):
    backend, worker = Backend(fragile_node.url), receivers(fragile_node.url)
    backend.publish(b"job", b"backlog")
    held = worker.next()
    fragile_node.stop()
    eventually(lambda: not worker.consumer.connected)
    fragile_node.start()
    eventually(lambda: worker.consumer.generation == 2)
    assert not worker.consumer.ack(held)
    worker.consumer.free(held.slot)
    bodies = set()
    for _ in range(2):
        delivery = worker.next()
        bodies.add(delivery.body)
        worker.finish(delivery)
    assert bodies == {b"job", b"backlog"}


def test_without_a_broker_nothing_is_answered_and_whoever_waits_for_it_begins_once_it_is_there(
    fragile_node, receivers
):
    backend, worker = Backend(fragile_node.url), receivers(fragile_node.url)
    backend.publish(b"job")
    held = worker.next()
    fragile_node.kill()
    eventually(lambda: not worker.consumer.connected)
    assert not worker.consumer.ack(held)
    worker.consumer.stop_consuming()

    early = receivers(fragile_node.url)
    assert early.nothing_within(0.5)
    assert not early.consumer.connected
    fragile_node.start()
    again = early.next()
    assert (again.body, again.redelivered) == (b"job", True)
    assert early.consumer.generation == 1
    early.finish(again)


def test_without_a_session_for_too_long_the_owner_is_told_once(receivers):
    with structlog.testing.capture_logs() as logs:
        worker = receivers("amqp://guest:secret-word@127.0.0.1:1/", give_up_after_seconds=0.3)
        assert worker.gave_up.wait(20)
        eventually(lambda: sum(log["event"] == "broker_not_reached" for log in logs) >= 2)
    assert worker.consumer.gave_up
    assert sum(log["event"] == "broker_given_up" for log in logs) == 1
    assert "secret-word" not in str(logs)
    assert "refused" in str(logs)


def test_a_deleted_queue_is_declared_again_and_consumed(backend, receiver, topology):
    worker = receiver()
    eventually(lambda: worker.consumer.connected)
    time.sleep(0.5)
    with structlog.testing.capture_logs() as logs:
        for name in (topology.main, topology.resume):
            backend.call(lambda channel, name=name: channel.queue_delete(name))
        eventually(lambda: any(log["event"] == "broker_channel_lost" for log in logs))
    backend.publish(b"job")
    worker.finish(worker.next())
    backend.publish(b"resumed", queue=topology.resume)
    worker.finish(worker.next())
    assert worker.consumer.generation == 1, "the connection was not the problem"


def test_a_deleted_queue_does_not_take_the_message_of_a_busy_slot(backend, receiver, topology):
    worker = receiver(slots=2)
    backend.publish(b"held")
    held = worker.next()
    time.sleep(0.5)
    backend.call(lambda channel: channel.queue_delete(topology.resume))
    backend.publish(b"next")
    next_one = worker.next()
    assert next_one.slot != held.slot
    assert worker.consumer.ack(held)
    assert worker.consumer.ack(next_one)


def test_a_channel_that_the_broker_closes_costs_that_slot_alone(backend, receiver):
    """`process_data_events` does not raise when only a channel died."""
    worker = receiver(slots=2)
    backend.publish(b"one", b"two")
    one, two = worker.next(), worker.next()
    channel = worker.consumer._slots[one.slot]._channel
    connection = worker.consumer._connection
    with structlog.testing.capture_logs() as logs:
        # Acknowledging a tag that does not exist: PRECONDITION_FAILED, as a time-out ends.
        connection.add_callback_threadsafe(lambda: channel.basic_ack(delivery_tag=999))
        eventually(lambda: any(log["event"] == "broker_channel_lost" for log in logs))
    assert not worker.consumer.ack(one)
    assert worker.nothing_within(0.5)
    worker.consumer.free(one.slot)
    again = worker.next()
    assert (again.body, again.redelivered, again.slot) == (one.body, True, one.slot)
    assert again.generation not in (one.generation, two.generation)
    assert worker.consumer.ack(again)
    assert worker.consumer.ack(two), "the other slot's channel was not touched"
    assert worker.consumer.generation == 1


def test_a_declaration_that_the_broker_refuses_is_tried_again(backend, receiver, topology):
    refused = []

    def declare(channel):
        if len(refused) < 2:
            refused.append(True)
            channel.queue_declare("amq.reserved", durable=True)
        topology.declare(channel)

    worker = receiver(declare=declare)
    eventually(lambda: worker.consumer.connected)
    backend.publish(b"job")
    assert worker.next().body == b"job"
    assert len(refused) == 2


@pytest.mark.parametrize("held", [True, False])
def test_closing_gives_back_what_is_held(backend, receiver, held: bool):
    worker = receiver()
    eventually(lambda: worker.consumer.connected)
    if held:
        backend.publish(b"job")
        delivery = worker.next()
    worker.consumer.close()
    assert worker.consumer.join(20)
    assert not worker.consumer.connected
    assert backend.ready() == int(held)
    if held:
        assert not worker.consumer.ack(delivery)
