"""Messages in, one a free slot, in the order of the queues."""

import threading
import time

import pytest

from tests.integration.broker.conftest import eventually
from worker.broker.topology import Topology


def test_a_message_is_delivered_as_published_and_gone_once_acknowledged(
    backend, receiver, publisher, topology
):
    worker = receiver()
    backend.publish(b"plain")
    plain = worker.next()
    assert (plain.body, plain.queue, plain.redelivered) == (b"plain", "model_training", False)
    assert plain.message_id is None
    assert plain.headers == {}
    worker.finish(plain)

    publisher.publish(topology.main, b"rich", message_id="id-1", headers={"x-lora-tries": 3})
    rich = worker.next()
    assert (rich.message_id, rich.headers) == ("id-1", {"x-lora-tries": 3})
    assert rich.content_type == "application/json"
    worker.finish(rich)
    worker.consumer.close()
    assert worker.consumer.join(20)
    assert backend.ready() == 0


def test_a_worker_holds_as_many_messages_as_it_has_slots(backend, receiver):
    worker = receiver(slots=2)
    backend.publish(*(str(number).encode() for number in range(5)))
    first, second = worker.next(), worker.next()
    assert {first.slot, second.slot} == {0, 1}
    assert worker.nothing_within(1.0)
    assert backend.ready() == 3
    worker.finish(first)
    third = worker.next()
    assert third.slot == first.slot
    assert worker.nothing_within(0.5)
    assert backend.ready() == 2


def test_a_message_handed_over_early_does_not_bring_another_until_the_slot_is_free(
    backend, receiver
):
    worker = receiver()
    backend.publish(b"long", b"next")
    long = worker.next()
    assert worker.consumer.ack(long)
    assert worker.nothing_within(1.0)
    assert backend.ready() == 1
    worker.consumer.free(long.slot)
    assert worker.next().body == b"next"


def test_a_slot_that_may_take_nothing_listens_to_nothing_until_it_may(backend, receiver):
    allowed = []
    worker = receiver(slots=2, priority=lambda slot: 0 if slot in allowed else None)
    backend.publish(b"first", b"second")
    assert worker.nothing_within(1.0)
    assert backend.ready() == 2
    allowed.append(1)
    worker.consumer.look_again()
    assert worker.next().slot == 1
    assert worker.nothing_within(0.5)
    assert backend.ready() == 1


def test_who_looks_ahead_gets_a_message_only_if_nobody_idle_can_take_it(backend, receiver):
    backend.publish()
    ahead, idle = receiver(priority=lambda slot: -1), receiver()

    def consumers():
        declared = backend.call(lambda c: c.queue_declare("model_training", passive=True))
        return declared.method.consumer_count

    eventually(lambda: consumers() == 2)
    for number in range(3):
        backend.publish(b"job %d" % number)
        taken = idle.next()
        if number < 2:
            idle.finish(taken)
            eventually(lambda: consumers() == 2)
    backend.publish(b"one more")
    assert ahead.next().body == b"one more"


def test_a_job_that_lost_its_worker_goes_before_the_backlog(backend, receiver, topology):
    worker = receiver()
    backend.publish(b"running", b"backlog", b"backlog")
    running = worker.next()
    backend.publish(b"comes back", queue=topology.resume)
    worker.finish(running)
    back = worker.next()
    assert (back.queue, back.body) == (topology.resume, b"comes back")


def test_of_two_messages_at_once_the_later_queues_one_is_given_back(backend, receiver, topology):
    """Both queues deliver to an idle slot; whichever it keeps, no message is lost or held."""
    worker = receiver()
    for number in range(10):
        eventually(lambda: worker.consumer.connected)
        both = threading.Barrier(2)

        def publish(queue: str, both: threading.Barrier = both, number: int = number) -> None:
            both.wait()
            backend.publish(str(number).encode(), queue=queue)

        threads = [threading.Thread(target=publish, args=(q,)) for q in ("model_training",)]
        threads.append(threading.Thread(target=publish, args=(topology.resume,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one = worker.next()
        assert worker.nothing_within(0.1)
        worker.finish(one)
        other = worker.next()
        worker.finish(other)
        assert {one.queue, other.queue} == {"model_training", topology.resume}
    assert worker.nothing_within(0.2)


def test_what_is_given_back_is_delivered_again_and_says_so(backend, receiver):
    worker = receiver()
    backend.publish(b"job")
    first = worker.next()
    assert worker.consumer.requeue(first)
    worker.consumer.free(first.slot)
    again = worker.next()
    assert (again.body, again.redelivered) == (b"job", True)


def test_a_delivery_is_settled_once(backend, receiver):
    worker = receiver()
    backend.publish(b"one", b"two")
    one = worker.next()
    assert worker.consumer.ack(one)
    assert not worker.consumer.ack(one)
    assert not worker.consumer.requeue(one)
    worker.consumer.free(one.slot)
    two = worker.next()
    # Answering twice on one channel would have cost the channel, and with it this message.
    assert two.generation == one.generation
    assert worker.consumer.ack(two)


def test_a_slot_freed_without_an_answer_gives_its_message_back(backend, receiver):
    worker = receiver()
    backend.publish(b"forgotten")
    worker.consumer.free(worker.next().slot)
    again = worker.next()
    assert again.redelivered
    assert worker.consumer.ack(again)


def test_a_worker_that_stops_consuming_can_still_settle(backend, receiver):
    worker = receiver(slots=2)
    backend.publish(b"held")
    held = worker.next()
    worker.consumer.stop_consuming()
    backend.publish(b"for others")
    assert worker.nothing_within(0.7)
    assert worker.consumer.ack(held)
    worker.consumer.free(held.slot)
    assert worker.nothing_within(0.7)
    assert backend.ready() == 1


def test_many_threads_settle_at_once(backend, receiver):
    worker = receiver(slots=4)
    backend.publish(*(b"%d" % number for number in range(80)))
    bodies: list[bytes] = []

    def work() -> None:
        for _ in range(20):
            delivery = worker.next()
            bodies.append(delivery.body)
            worker.finish(delivery)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bodies) == sorted(b"%d" % number for number in range(80))
    assert worker.nothing_within(0.2)
    assert backend.ready() == 0


def test_heartbeats_flow_while_a_message_is_held_much_longer_than_they_last(backend, receiver):
    worker = receiver(heartbeat_seconds=2)
    backend.publish(b"long", b"next")
    long = worker.next()
    time.sleep(8)
    assert worker.consumer.ack(long)
    worker.consumer.free(long.slot)
    assert not worker.next().redelivered
    assert worker.consumer.generation == 1
    assert backend.ready() == 0


def test_a_parked_message_comes_back_through_resume(backend, receiver, publisher):
    topology = Topology(queue="short", parked_seconds=0.5, job_retry_seconds=(0.3,))
    worker = receiver(topology=topology)
    eventually(lambda: worker.consumer.connected)
    publisher.publish(topology.parked, b"parked", message_id="id-1", headers={"x-lora-epoch": 2})
    back = worker.next()
    assert (back.queue, back.message_id) == (topology.resume, "id-1")
    assert back.headers["x-lora-epoch"] == 2
    worker.finish(back)
    publisher.publish(topology.retry_for_attempt(1), b"again", message_id="id-1", headers=None)
    again = worker.next()
    assert (again.queue, again.body) == (topology.resume, b"again")
    worker.finish(again)


@pytest.mark.parametrize("slots", [0, -1])
def test_a_consumer_without_slots_is_refused(receivers, slots: int):
    with pytest.raises(ValueError, match="slot"):
        receivers("amqp://guest:guest@127.0.0.1:1/", slots=slots)
