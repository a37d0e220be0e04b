"""A delivery that is held too long is handed over, whatever goes wrong at first."""

import threading

import pytest

from worker.broker.confirms import PublishFailed
from worker.broker.delivery import Delivery
from worker.broker.topology import Topology
from worker.jobs import held_delivery
from worker.jobs.held_delivery import HeldDelivery


class Consumer:
    """Notes what is acknowledged."""

    def __init__(self):
        self.acked = threading.Event()

    def ack(self, delivery):
        self.acked.set()
        return True

    def requeue(self, delivery):
        return True

    def holds(self, delivery):
        return True


class Publisher:
    """Fails in these ways, one after another, then takes what it is given."""

    def __init__(self, *errors):
        self.errors, self.taken = list(errors), []

    def publish(self, queue, body, **properties):
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(queue)


@pytest.mark.parametrize("error", [PublishFailed("no broker"), TypeError("a defect of ours")])
def test_a_hand_over_that_fails_is_tried_again(error, mocker):
    mocker.patch.object(held_delivery, "_HAND_OVER_AGAIN_SECONDS", 0.01)
    consumer, publisher, topology = Consumer(), Publisher(error, error), Topology()
    HeldDelivery(
        Delivery(0, 1, 1, "model_training", b"{}", "j", {}, False, None, 0.0),
        consumer=consumer,
        publisher=publisher,
        topology=topology,
        hand_over_after_seconds=0.01,
    )
    assert consumer.acked.wait(30)
    assert publisher.taken == [topology.parked]
