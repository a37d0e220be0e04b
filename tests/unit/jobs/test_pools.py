"""The worker's consumers and their slots: what goes wrong in one delivery is over with it."""

import threading
from types import SimpleNamespace

import pytest

from tests.live_worker import eventually
from tests.unit.jobs.test_place import Trainer
from worker.jobs import pools
from worker.jobs.quota import JobQuota

SETTINGS = SimpleNamespace(
    pack_slots=1, prefetch_seconds=30, rabbitmq_give_up_seconds=None, handover_after_seconds=1200
)
TOPOLOGY = SimpleNamespace(resume="q.resume", main="q", declare=lambda channel: None)


class Consumer:
    """Is asked and gives by hand."""

    def __init__(self, address, *, on_delivery, priority, **rules):
        self.deliver, self.priority, self.freed = on_delivery, priority, []

    def free(self, slot):
        self.freed.append(slot)

    def look_again(self):
        pass


@pytest.fixture
def pool(mocker):
    """That of one trainer."""
    mocker.patch.object(pools, "Consumer", Consumer)
    parts = SimpleNamespace(settings=SETTINGS, topology=TOPOLOGY, address=None, publisher=None)
    runner = SimpleNamespace(handle=lambda held, turn: None)
    pool = pools.job_pool(parts, runner, [Trainer()], JobQuota(), give_up=lambda: None)
    for slot in pool.slots:
        slot.start()
    yield pool
    for slot in pool.slots:
        slot.finish()


def test_a_delivery_that_cannot_even_be_held_does_not_keep_the_place(pool, mocker):
    mocker.patch.object(threading.Timer, "start", side_effect=RuntimeError("no thread is left"))
    assert pool.consumer.priority(0) == 0
    pool.consumer.deliver(SimpleNamespace(slot=0, queue="q", message_id="j"))
    eventually(lambda: pool.consumer.freed == [0], "the slot is free again")
    assert pool.consumer.priority(1) == 0
