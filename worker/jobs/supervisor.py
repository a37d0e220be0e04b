"""The worker as a whole: its parts, how they start, how they stop."""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from types import FrameType

import structlog
from pydantic import SecretStr

from worker import __version__
from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Consumer, Delivery
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.base_model import BaseModelEntry, CatalogueError, load_catalogue
from worker.contract.events import ENDPOINTS, ProgressBody, idempotency_key
from worker.jobs.conclusion import Conclusion
from worker.jobs.devices import visible_gpus
from worker.jobs.held_delivery import HeldDelivery
from worker.jobs.outbox import Outbox, OutboxSender
from worker.jobs.record import JobRecord
from worker.jobs.runner import JobRunner, RunnerSettings
from worker.jobs.slots import Slot
from worker.jobs.stages import StageRunner
from worker.jobs.trainer_process import TRAINER_COMMAND, TrainerSlot
from worker.settings import Settings, SettingsError
from worker.storage.images import ImageFetcher
from worker.storage.s3 import S3Store
from worker.storage.store import ObjectUrl, StorageError, StoreUnavailable
from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed
from worker.webhooks.client import WebhookClient
from worker.webhooks.retry import RetrySchedule

log = structlog.get_logger()

#: Terminal events sent at a time: one hanging receiver must not hold up the others.
_EVENT_SLOTS = 4

#: Time between two looks at the store while it cannot be reached at the start, seconds.
_STORE_RETRY_SECONDS = 2.0

#: Exit status when there was no broker for too long (sysexits' EX_UNAVAILABLE).
EXIT_NO_BROKER = 69

#: Exit status of a stop in which jobs did not end within the grace period.
EXIT_FORCED = 70


class Supervisor:
    """Builds the parts from settings, runs them until told to stop."""

    def __init__(
        self, settings: Settings, *, trainer_command: Sequence[str] = TRAINER_COMMAND
    ) -> None:
        """Check what can be checked without a connection. Raises `SettingsError`."""
        self._settings = settings
        self._stop = threading.Event()
        self._signals = 0
        self._gave_up = False
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._catalogue = _catalogue(settings)
        self._gpus = _gpus(settings)
        self._allow_list = WebhookAllowList(
            settings.webhook_allowed_hosts, require_https=settings.environment == "production"
        )
        _check_webhook_base(settings, self._allow_list)
        self._store = S3Store(
            endpoint_url=settings.s3_endpoint_url, timeout_seconds=settings.s3_timeout_seconds
        )
        self._client = WebhookClient(
            _secret(settings.internal_api_token),
            allow_list=self._allow_list,
            signing_secret=_secret(settings.webhook_signing_secret),
            total_deadline_seconds=settings.webhook_timeout_seconds,
        )
        self._topology = Topology(
            queue=settings.rabbitmq_queue,
            queue_type=settings.rabbitmq_queue_type,
            parked_seconds=settings.parked_seconds,
            dead_max_messages=settings.dead_letter_max_messages,
            job_retry_seconds=settings.job_retry_seconds,
            events_retry_seconds=settings.webhook_retry_seconds,
        )
        self._address = BrokerAddress(
            settings.broker_url, heartbeat_seconds=settings.rabbitmq_heartbeat_seconds
        )
        self._publisher = Publisher(self._address, name="publisher")
        self._runner = self._build_runner()
        self._trainers = self._build_trainers(trainer_command)
        self._job_slots = [self._job_slot(i, trainer) for i, trainer in enumerate(self._trainers)]
        self._event_slots = [self._event_slot(index) for index in range(_EVENT_SLOTS)]
        self._jobs = self._consumer(
            "jobs", [self._topology.resume, self._topology.main], self._job_slots
        )
        self._events = self._consumer("events", [self._topology.events], self._event_slots)

    # --- running

    def run(self) -> int:
        """Work until a signal or until the broker is given up. Returns the exit status."""
        settings = self._settings
        log.info(
            "worker_starting",
            version=__version__,
            owner=self.owner,
            slots=len(self._trainers),
            gpus=self._gpus,
            environment=settings.environment,
        )
        for slot in (*self._job_slots, *self._event_slots):
            slot.start()
        if not self._check_store():
            return 0
        self._events.start()
        self._jobs.start()
        self._stop.wait()
        return self._shut_down()

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT drain; a second one ends the worker at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def stop(self) -> None:
        """Drain: no new job, the running ones leave a checkpoint."""
        self._stop.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            for slot in self._trainers:
                slot.kill()
            os._exit(128 + number)
        self._stop.set()

    def _shut_down(self) -> int:
        deadline = time.monotonic() + self._settings.shutdown_grace_seconds
        log.info("worker_stopping", grace_seconds=self._settings.shutdown_grace_seconds)
        self._jobs.stop_consuming()
        ended = _finish(self._job_slots, deadline)
        self._events.stop_consuming()
        ended = _finish(self._event_slots, deadline) and ended
        for part in (self._jobs, self._events, self._publisher):
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
        self._stop.set()

    def _check_store(self) -> bool:
        """Wait for the store, then see what it can do. False if told to stop meanwhile.

        Raises:
            SettingsError: the bucket is missing or refuses us.
        """
        bucket = self._settings.s3_bucket
        while not self._stop.is_set():
            try:
                found = self._store.probe(ObjectUrl(bucket, "jobs/"))
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

    def _build_runner(self) -> JobRunner:
        settings = self._settings
        outbox = Outbox(self._publisher, self._topology)
        fetcher = ImageFetcher(
            s3=self._store,
            gs_as_s3=settings.s3_endpoint_url is not None,
            https_hosts=settings.image_allowed_hosts,
            allow_files=settings.allow_local_images,
            max_bytes=settings.max_image_bytes,
            parallelism=settings.download_parallelism,
            deadline_seconds=settings.download_timeout_seconds,
        )
        return JobRunner(
            RunnerSettings(
                owner=self.owner,
                bucket=settings.s3_bucket,
                work_dir=settings.work_dir,
                max_images=settings.max_images,
                max_attempts=settings.max_attempts,
                lease_term_seconds=settings.lease_term_seconds,
                lease_renew_seconds=settings.lease_renew_seconds,
                progress_interval_seconds=settings.progress_interval_seconds,
                webhook_base_url=settings.webhook_base_url,
                default_base_model=settings.default_base_model,
            ),
            store=self._store,
            topology=self._topology,
            stages=StageRunner(
                store=self._store,
                fetcher=fetcher,
                allow_hub=settings.allow_model_hub,
                time_limit_seconds=settings.job_time_limit_seconds,
            ),
            conclusion=Conclusion(
                store=self._store,
                bucket=settings.s3_bucket,
                outbox=outbox,
                topology=self._topology,
                owner=self.owner,
            ),
            catalogue=self._catalogue,
            allow_list=self._allow_list,
            send_progress=self._send_progress,
            stopping=self._stop.is_set,
        )

    def _build_trainers(self, command: Sequence[str]) -> list[TrainerSlot]:
        places: list[str | None] = [
            gpu for gpu in self._gpus for _ in range(self._settings.trainers_per_gpu)
        ]
        return [
            TrainerSlot(
                gpu=gpu,
                allow_hub=self._settings.allow_model_hub,
                max_jobs=self._settings.trainer_max_jobs,
                start_timeout_seconds=self._settings.trainer_start_timeout_seconds,
                command=command,
            )
            for gpu in places or [None]
        ]

    def _job_slot(self, index: int, trainer: TrainerSlot) -> Slot:
        def handle(delivery: Delivery) -> None:
            held = HeldDelivery(
                delivery,
                consumer=self._jobs,
                publisher=self._publisher,
                topology=self._topology,
                hand_over_after_seconds=self._settings.handover_after_seconds,
            )
            self._runner.handle(held, trainer)

        return Slot(
            index,
            name="job",
            handle=handle,
            free=lambda i: self._jobs.free(i),
            begin=trainer.warm_up,
            end=trainer.close,
        )

    def _event_slot(self, index: int) -> Slot:
        sender = OutboxSender(
            self._client,
            self._publisher,
            self._topology,
            self._record,
            RetrySchedule(
                self._settings.webhook_retry_seconds, self._settings.webhook_retry_total_seconds
            ),
        )

        def handle(delivery: Delivery) -> None:
            try:
                sender.handle(delivery)
            except Exception:
                log.exception("event_not_handled")
                time.sleep(1)  # whatever is broken, do not spin on it
                self._events.requeue(delivery)
            else:
                self._events.ack(delivery)

        return Slot(index, name="event", handle=handle, free=lambda i: self._events.free(i))

    def _consumer(self, name: str, queues: list[str], slots: list[Slot]) -> Consumer:
        return Consumer(
            self._address,
            queues=queues,
            slots=len(slots),
            on_delivery=lambda delivery: slots[delivery.slot].deliver(delivery),
            declare=self._topology.declare,
            name=name,
            give_up_after_seconds=self._settings.rabbitmq_give_up_seconds,
            on_give_up=self._give_up,
        )

    def _record(self, job_id: str) -> JobRecord:
        return JobRecord(self._store, self._settings.s3_bucket, job_id)

    def _send_progress(self, base: str, body: ProgressBody, sequence: int) -> bool:
        method, path = ENDPOINTS["progress"]
        key = idempotency_key(body.job_id, "progress", sequence)
        answer = self._client.send(method, base, path, body.body(), key)
        if answer.kind != "delivered":
            log.warning("progress_not_delivered", status=answer.status, reason=answer.reason)
        return answer.kind != "gone"


def _finish(slots: list[Slot], deadline: float) -> bool:
    for slot in slots:
        slot.finish()
    for slot in slots:
        slot.join(max(0.0, deadline - time.monotonic()))
    return not any(slot.is_alive() for slot in slots)


def _catalogue(settings: Settings) -> dict[str, BaseModelEntry]:
    try:
        catalogue = load_catalogue(settings.base_models_file)
    except CatalogueError as error:
        raise SettingsError([f"BASE_MODELS_FILE is not valid: {error}"]) from None
    if settings.default_base_model not in catalogue:
        raise SettingsError(
            [
                f"DEFAULT_BASE_MODEL {settings.default_base_model!r} is not in "
                f"{settings.base_models_file}; it has {', '.join(sorted(catalogue))}"
            ]
        )
    return catalogue


def _gpus(settings: Settings) -> list[str]:
    gpus = visible_gpus(settings.cuda_visible_devices)
    if not gpus and settings.environment == "production":
        raise SettingsError(
            ["CUDA_VISIBLE_DEVICES shows no GPU; production needs one (driver, --gpus all?)"]
        )
    if not gpus:
        log.warning("no_gpu", device="cpu", note="training on the CPU is for trying things out")
    return gpus


def _check_webhook_base(settings: Settings, allow_list: WebhookAllowList) -> None:
    if settings.webhook_base_url:
        try:
            allow_list.check(settings.webhook_base_url)
        except WebhookNotAllowed as error:
            raise SettingsError([f"WEBHOOK_BASE_URL is not allowed: {error}"]) from None


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None
