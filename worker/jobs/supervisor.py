"""The worker as a whole: what it is made of, how it starts and how it stops."""

import os
import time
from collections.abc import Sequence

import structlog

from worker import __version__
from worker.jobs.assembly import (
    assemble,
    job_runner,
    outbox_sender,
    status_server,
    surroundings,
    trainer_slots,
)
from worker.jobs.control import RunningJobs
from worker.jobs.health import Health
from worker.jobs.pools import control_pool, event_pool, job_pool
from worker.jobs.quota import JobQuota
from worker.jobs.retirement import Retirement, RunLimits
from worker.jobs.slots import Slot
from worker.jobs.stopping import StopRequest
from worker.observability.activity import Activity
from worker.settings import Settings, SettingsError
from worker.storage.store import ObjectUrl, StorageError, StoreUnavailable

log = structlog.get_logger()

#: Time between two looks at the store while it cannot be reached at the start, seconds.
_STORE_RETRY_SECONDS = 2.0

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
        self._gave_up = self._ending = self._broker_asked = False
        self._parts = assemble(settings)
        running = RunningJobs()
        self._activity = Activity()
        self._trainers = trainer_slots(self._parts, trainer_command)
        runner = job_runner(
            self._parts, running=running, stopping=self._stop, activity=self._activity
        )
        self._jobs = job_pool(
            self._parts, runner, self._trainers, self._quota, give_up=self._give_up
        )
        self._events = event_pool(self._parts, outbox_sender(self._parts), give_up=self._give_up)
        self._control = control_pool(self._parts, running)
        self._pools = (self._jobs, self._events, self._control)
        self._surroundings = surroundings(self._parts, self._events.consumer, self._activity)

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
        for slot in self._slots():
            slot.start()
        if not self._check_store():
            return 0
        self._broker_asked = True
        for pool in (self._events, self._control, self._jobs):
            pool.consumer.start()
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
        ended = self._jobs.finish(deadline)
        ended = self._events.finish(deadline) and ended
        for pool in self._pools:
            pool.consumer.close()
        self._parts.publisher.close()
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
                self._surroundings.store_answered(error)
                log.warning("store_not_reached", reason=str(error))
                self._stop.wait(_STORE_RETRY_SECONDS)
                continue
            except StorageError as error:
                raise SettingsError([f"S3_BUCKET {bucket} cannot be used: {error}"]) from None
            if not found.writable:
                raise SettingsError([f"S3_BUCKET {bucket} cannot be written: {found.reason}"])
            if not found.conditional_put:
                log.error("store_without_conditional_put", reason=found.reason, fenced=False)
            self._surroundings.store_answered(None)
            return True
        return False

    # --- building

    def _slots(self) -> list[Slot]:
        return [slot for pool in self._pools for slot in pool.slots]

    def _health(self) -> Health:
        return Health(
            owner=self._parts.owner,
            environment=self._settings.environment,
            activity=self._activity,
            surroundings=self._surroundings,
            consumers={
                "jobs": self._jobs.consumer,
                "events": self._events.consumer,
                "control": self._control.consumer,
            },
            slots=self._slots(),
            trainers=self._trainers,
            slots_a_trainer=self._settings.pack_slots,
            stopping=lambda: self._ending or self._stop(),
            broker_asked=lambda: self._broker_asked,
        )

    def _retirement(self) -> Retirement:
        events = self._events.consumer
        return Retirement(
            self._limits,
            self._quota,
            jobs=self._jobs.consumer,
            events=events,
            events_left=lambda: events.message_count(self._parts.topology.events),
            stop_within=self._stop.wait,
        )
