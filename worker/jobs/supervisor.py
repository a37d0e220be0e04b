"""The worker as a whole: its slots, its consumers, how it starts and how it stops."""

import os
import time
from collections.abc import Callable, Sequence

import structlog
from pika.adapters.blocking_connection import BlockingChannel

from worker import __version__
from worker.broker.consumer import Consumer, Delivery
from worker.broker.topology import declare_control_queue
from worker.jobs.assembly import (
    assemble,
    job_runner,
    outbox_sender,
    status_server,
    surroundings,
    trainer_slots,
)
from worker.jobs.control import ControlListener, RunningJobs
from worker.jobs.health import Health
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.place import SLOTS_A_JOB, Place, Turn
from worker.jobs.quota import JobQuota
from worker.jobs.retirement import Retirement, RunLimits
from worker.jobs.slots import Slot
from worker.jobs.stopping import StopRequest
from worker.jobs.trainer_slot import TrainerSlot
from worker.observability.activity import Activity
from worker.settings import Settings, SettingsError
from worker.storage.store import ObjectUrl, StorageError, StoreUnavailable

log = structlog.get_logger()

#: Terminal events sent at a time: one hanging receiver must not hold up the others.
_EVENT_SLOTS = 4

#: Time between two looks at the store while it cannot be reached at the start, seconds.
_STORE_RETRY_SECONDS = 2.0

#: How often the end of the slots is looked for while the worker stops, seconds.
_NAP_SECONDS = 0.05

#: Exit status when there was no broker for too long (sysexits' EX_UNAVAILABLE).
EXIT_NO_BROKER = 69

#: Exit status of a stop in which jobs did not end within the grace period.
EXIT_FORCED = 70


class Supervisor:
    """Runs jobs and sends events until told to stop, or until its limits are met."""

    def __init__(
        self,
        settings: Settings,
        *,
        limits: RunLimits | None = None,
        trainer_command: Sequence[str] | None = None,
    ) -> None:
        """Check what can be checked without a connection. Raises `SettingsError`."""
        self._settings = settings
        self._limits = limits or RunLimits()
        self._quota = JobQuota(self._limits.max_jobs)
        self._stop = StopRequest()
        self._gave_up = self._ending = False
        self._parts = assemble(settings)
        self._running = RunningJobs()
        self._activity = Activity()
        self._runner = job_runner(
            self._parts, running=self._running, stopping=self._stop, activity=self._activity
        )
        self._sender = outbox_sender(self._parts)
        self._trainers = trainer_slots(self._parts, trainer_command)
        self._places = [self._place(trainer) for trainer in self._trainers]
        self._slots_a_place = settings.pack_slots * SLOTS_A_JOB
        self._job_slots = [
            self._job_slot(index) for index in range(len(self._places) * self._slots_a_place)
        ]
        self._event_slots = [self._event_slot(index) for index in range(_EVENT_SLOTS)]
        topology = self._parts.topology
        self._jobs = self._consumer(
            "jobs",
            [topology.resume, topology.main],
            slots=len(self._job_slots),
            deliver=self._deliver_job,
            priority=lambda slot: self._place_of(slot).priority(slot),
        )
        self._events = self._consumer(
            "events",
            [topology.events],
            slots=len(self._event_slots),
            deliver=lambda delivery: self._event_slots[delivery.slot].deliver(delivery),
        )
        self._control_slot = self._listening_slot()
        self._control = self._control_consumer()
        self._surroundings = surroundings(self._parts, self._events, self._activity)

    # --- running

    def run(self) -> int:
        """Work until a signal, a limit, or the broker is given up. Returns the exit status."""
        if not self._settings.http_port:
            return self._run()
        with status_server(self._settings, self._health()):
            return self._run()

    def _run(self) -> int:
        settings = self._settings
        log.info(
            "worker_starting",
            version=__version__,
            owner=self._parts.owner,
            slots=len(self._trainers) * settings.pack_slots,
            gpus=[share.gpus for share in self._parts.shares],
            environment=settings.environment,
        )
        for slot in (*self._job_slots, *self._event_slots, self._control_slot):
            slot.start()
        if not self._check_store():
            return 0
        self._events.start()
        self._control.start()
        self._jobs.start()
        if settings.http_port:
            self._surroundings.start()
        self._retirement().wait()
        return self._shut_down()

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT drain; a second one ends the worker at once."""
        self._stop.on_signals(again=self._end_at_once)

    def stop(self) -> None:
        """Drain: no new job, the running ones leave a checkpoint."""
        self._stop.request()

    def _end_at_once(self, number: int) -> None:
        for slot in self._trainers:
            slot.kill()
        os._exit(128 + number)

    def _shut_down(self) -> int:
        self._ending = True
        deadline = time.monotonic() + self._settings.shutdown_grace_seconds
        log.info("worker_stopping", grace_seconds=self._settings.shutdown_grace_seconds)
        self._jobs.stop_consuming()
        ended = _finish(self._job_slots, deadline)
        self._events.stop_consuming()
        ended = _finish(self._event_slots, deadline) and ended
        for part in (self._jobs, self._events, self._control, self._parts.publisher):
            part.close()
        for slot in self._trainers:
            slot.kill()
        log.info("worker_stopped", clean=ended)
        if self._gave_up:
            return EXIT_NO_BROKER
        return 0 if ended else EXIT_FORCED

    def _give_up(self) -> None:
        log.error("broker_given_up", seconds=self._settings.rabbitmq_give_up_seconds)
        self._gave_up = True
        self._stop.request()

    def _check_store(self) -> bool:
        """Wait for the store, then see what it can do. False if told to stop meanwhile.

        Raises:
            SettingsError: the bucket is missing or refuses us.
        """
        bucket = self._settings.s3_bucket
        while not self._stop():
            try:
                found = self._parts.store.probe(ObjectUrl(bucket, "jobs/"))
            except StoreUnavailable as error:
                log.warning("store_not_reached", reason=str(error))
                self._stop.wait(_STORE_RETRY_SECONDS)
                continue
            except StorageError as error:
                raise SettingsError([f"S3_BUCKET {bucket} cannot be used: {error}"]) from None
            if not found.writable:
                raise SettingsError([f"S3_BUCKET {bucket} cannot be written: {found.reason}"])
            if not found.conditional_put:
                log.error("store_without_conditional_put", reason=found.reason, fenced=False)
            return True
        return False

    # --- building

    def _health(self) -> Health:
        return Health(
            owner=self._parts.owner,
            environment=self._settings.environment,
            activity=self._activity,
            surroundings=self._surroundings,
            consumers={"jobs": self._jobs, "events": self._events, "control": self._control},
            slots=(*self._job_slots, *self._event_slots, self._control_slot),
            trainers=self._trainers,
            slots_a_trainer=self._settings.pack_slots,
            stopping=lambda: self._ending or self._stop(),
        )

    def _retirement(self) -> Retirement:
        return Retirement(
            self._limits,
            self._quota,
            jobs=self._jobs,
            events=self._events,
            events_left=lambda: self._events.message_count(self._parts.topology.events),
            stop_within=self._stop.wait,
        )

    def _place(self, trainer: TrainerSlot) -> Place:
        return Place(
            trainer,
            slots=self._settings.pack_slots,
            ahead_seconds=self._settings.prefetch_seconds,
            changed=lambda: self._jobs.look_again(),
            quota=self._quota,
        )

    def _place_of(self, slot: int) -> Place:
        return self._places[slot // self._slots_a_place]

    def _deliver_job(self, delivery: Delivery) -> None:
        self._place_of(delivery.slot).taken(delivery.slot)
        self._job_slots[delivery.slot].deliver(delivery)

    def _job_slot(self, index: int) -> Slot:
        place = self._place_of(index)

        def handle(delivery: Delivery) -> None:
            held = HeldDelivery(
                delivery,
                consumer=self._jobs,
                publisher=self._parts.publisher,
                topology=self._parts.topology,
                hand_over_after_seconds=self._settings.handover_after_seconds,
            )
            self._runner.handle(held, Turn(place, index))

        return Slot(
            index,
            name="job",
            handle=handle,
            free=lambda i: self._jobs.free(i),
            begin=place.open,
            end=place.close,
        )

    def _event_slot(self, index: int) -> Slot:
        def handle(delivery: Delivery) -> None:
            try:
                done = self._sender.handle(delivery, lambda: self._events.holds(delivery))
            except Exception:
                log.exception("event_not_handled")
                time.sleep(1)  # whatever is broken, do not spin on it
                done = False
            if done:
                self._events.ack(delivery)
            else:
                self._events.requeue(delivery)

        return Slot(index, name="event", handle=handle, free=lambda i: self._events.free(i))

    def _listening_slot(self) -> Slot:
        listener = ControlListener(self._running)

        def handle(delivery: Delivery) -> None:
            listener.handle(delivery)
            self._control.ack(delivery)

        return Slot(0, name="control", handle=handle, free=lambda i: self._control.free(i))

    def _control_consumer(self) -> Consumer:
        topology, owner = self._parts.topology, self._parts.owner

        def declare(channel: BlockingChannel) -> None:
            declare_control_queue(channel, topology, owner)

        return Consumer(
            self._parts.address,
            queues=[topology.control_queue(owner)],
            slots=1,
            on_delivery=self._control_slot.deliver,
            declare=declare,
            name="control",
            give_up_after_seconds=self._settings.rabbitmq_give_up_seconds,
        )

    def _consumer(
        self,
        name: str,
        queues: list[str],
        *,
        slots: int,
        deliver: Callable[[Delivery], None],
        priority: Callable[[int], int | None] = lambda slot: 0,
    ) -> Consumer:
        return Consumer(
            self._parts.address,
            queues=queues,
            slots=slots,
            on_delivery=deliver,
            declare=self._parts.topology.declare,
            name=name,
            priority=priority,
            give_up_after_seconds=self._settings.rabbitmq_give_up_seconds,
            on_give_up=self._give_up,
        )


def _finish(slots: list[Slot], deadline: float) -> bool:
    for slot in slots:
        slot.finish()
    # Short naps: a second signal is answered between two of them, whichever thread it hits.
    while any(slot.is_alive() for slot in slots) and time.monotonic() < deadline:
        time.sleep(_NAP_SECONDS)
    return not any(slot.is_alive() for slot in slots)
