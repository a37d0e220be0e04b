"""What does the worker listen to? Jobs, events, control messages: a consumer and its slots each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from pika.adapters.blocking_connection import BlockingChannel

from worker.broker.consumer import Consumer
from worker.broker.delivery import Delivery
from worker.broker.topology import declare_control_queue
from worker.jobs.assembly import Parts
from worker.jobs.control import ControlListener, RunningJobs
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.outbox import OutboxSender
from worker.jobs.place import SLOTS_A_JOB, Place, Turn
from worker.jobs.quota import JobQuota
from worker.jobs.runner import JobRunner
from worker.jobs.slots import Slot
from worker.jobs.trainer_slot import TrainerSlot

log = structlog.get_logger()

#: Terminal events sent at a time: one hanging receiver must not hold up the others.
_EVENT_SLOTS = 4

#: How often the end of the slots is looked for while the worker stops, seconds.
_NAP_SECONDS = 0.05


@dataclass(frozen=True)
class Pool:
    """A consumer and the slots that handle what it is given."""

    consumer: Consumer
    slots: Sequence[Slot]

    def finish(self, deadline: float) -> bool:
        """Take no further message; whether all slots end by the deadline, a monotonic time."""
        self.consumer.stop_consuming()
        for slot in self.slots:
            slot.finish()
        # Short naps: a second signal is answered between two of them, whichever thread it hits.
        while any(slot.is_alive() for slot in self.slots) and time.monotonic() < deadline:
            time.sleep(_NAP_SECONDS)
        return not any(slot.is_alive() for slot in self.slots)


def job_pool(
    parts: Parts,
    runner: JobRunner,
    trainers: Sequence[TrainerSlot],
    quota: JobQuota,
    *,
    give_up: Callable[[], None],
) -> Pool:
    """The slots of all trainers, each trainer's beside one another. Nothing is started yet."""
    settings, topology = parts.settings, parts.topology
    slots_a_place = settings.pack_slots * SLOTS_A_JOB
    places: list[Place] = []
    slots: list[Slot] = []

    def place_of(slot: int) -> Place:
        return places[slot // slots_a_place]

    def deliver(delivery: Delivery) -> None:
        place_of(delivery.slot).taken(delivery.slot)
        slots[delivery.slot].deliver(delivery)

    consumer = Consumer(
        parts.address,
        queues=[topology.resume, topology.main],
        slots=len(trainers) * slots_a_place,
        on_delivery=deliver,
        declare=topology.declare,
        name="jobs",
        priority=lambda slot: place_of(slot).priority(slot),
        give_up_after_seconds=settings.rabbitmq_give_up_seconds,
        on_give_up=give_up,
    )

    def handle(delivery: Delivery) -> None:
        turn = Turn(place_of(delivery.slot), delivery.slot)
        try:
            held = HeldDelivery(
                delivery,
                consumer=consumer,
                publisher=parts.publisher,
                topology=topology,
                hand_over_after_seconds=settings.handover_after_seconds,
            )
            runner.handle(held, turn)
        finally:
            turn.end()  # or the place would wait for ever for a delivery that could not be held

    places += [
        Place(
            trainer,
            slots=settings.pack_slots,
            ahead_seconds=settings.prefetch_seconds,
            changed=consumer.look_again,
            quota=quota,
        )
        for trainer in trainers
    ]
    slots += [
        Slot(
            index,
            name="job",
            handle=handle,
            free=consumer.free,
            begin=place_of(index).open,
            end=place_of(index).close,
        )
        for index in range(len(trainers) * slots_a_place)
    ]
    return Pool(consumer, slots)


def event_pool(parts: Parts, sender: OutboxSender, *, give_up: Callable[[], None]) -> Pool:
    """The slots that send terminal events. Nothing is started yet."""
    slots: list[Slot] = []
    consumer = Consumer(
        parts.address,
        queues=[parts.topology.events],
        slots=_EVENT_SLOTS,
        on_delivery=lambda delivery: slots[delivery.slot].deliver(delivery),
        declare=parts.topology.declare,
        name="events",
        give_up_after_seconds=parts.settings.rabbitmq_give_up_seconds,
        on_give_up=give_up,
    )

    def handle(delivery: Delivery) -> None:
        try:
            done = sender.handle(delivery, lambda: consumer.holds(delivery))
        except Exception:
            log.exception("event_not_handled")
            time.sleep(1)  # whatever is broken, do not spin on it
            done = False
        if done:
            consumer.ack(delivery)
        else:
            consumer.requeue(delivery)

    slots += [
        Slot(index, name="event", handle=handle, free=consumer.free)
        for index in range(_EVENT_SLOTS)
    ]
    return Pool(consumer, slots)


def control_pool(parts: Parts, running: RunningJobs) -> Pool:
    """The one slot that hears what all workers are told. Nothing is started yet."""
    topology, owner = parts.topology, parts.owner
    listener = ControlListener(running)

    def declare(channel: BlockingChannel) -> None:
        declare_control_queue(channel, topology, owner)

    consumer = Consumer(
        parts.address,
        queues=[topology.control_queue(owner)],
        slots=1,
        on_delivery=lambda delivery: slot.deliver(delivery),
        declare=declare,
        name="control",
        give_up_after_seconds=parts.settings.rabbitmq_give_up_seconds,
    )

    def handle(delivery: Delivery) -> None:
        listener.handle(delivery)
        consumer.ack(delivery)

    slot = Slot(0, name="control", handle=handle, free=consumer.free)
    return Pool(consumer, [slot])
