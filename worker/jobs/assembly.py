"""How is a worker put together? What its jobs and events share, and what each is given of it."""

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from pydantic import SecretStr

from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Consumer
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.base_model import BaseModelEntry
from worker.contract.events import ENDPOINTS, ProgressBody, idempotency_key
from worker.jobs.attempt import AttemptRules, Attempts
from worker.jobs.conclusion import Conclusion
from worker.jobs.control import RunningJobs
from worker.jobs.devices import Share
from worker.jobs.from_settings import (
    catalogue_of,
    image_fetcher,
    named,
    s3_store,
    topology_of,
    trainer_shares,
    trainer_slot,
)
from worker.jobs.health import Health
from worker.jobs.intake import Intake
from worker.jobs.outbox import Outbox, OutboxSender
from worker.jobs.record import JobRecord
from worker.jobs.runner import JobRunner
from worker.jobs.stages import StageRunner
from worker.jobs.surroundings import Surroundings
from worker.jobs.trainer_slot import TrainerSlot
from worker.observability.activity import Activity
from worker.observability.http_server import StatusServer
from worker.settings import Settings, SettingsError
from worker.storage.s3 import S3Store
from worker.storage.store import ObjectUrl
from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed
from worker.webhooks.client import WebhookClient
from worker.webhooks.retry import RetrySchedule

log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """What the worker's jobs and events share.

    Attributes:
        owner: this worker's name in leases and dead letters.
        shares: what of the machine each trainer has.
    """

    settings: Settings
    owner: str
    shares: list[Share]
    catalogue: dict[str, BaseModelEntry]
    store: S3Store
    allow_list: WebhookAllowList
    client: WebhookClient
    topology: Topology
    address: BrokerAddress
    publisher: Publisher

    def record(self, job_id: str) -> JobRecord:
        """A job's objects in the store."""
        return JobRecord(self.store, self.settings.s3_bucket, job_id)

    def send_progress(
        self, base: str, body: ProgressBody, sequence: int, still_ours: Callable[[], bool]
    ) -> bool:
        """Send one report; False if the receiver answered 410 Gone."""
        method, path = ENDPOINTS["progress"]
        key = idempotency_key(body.job_id, "progress", sequence)
        answer = self.client.send(method, base, path, body.body(), key, still_ours=still_ours)
        if answer.kind != "delivered":
            log.warning("progress_not_delivered", status=answer.status, reason=answer.reason)
        return answer.kind != "gone"


def assemble(settings: Settings) -> Parts:
    """Build and check all that needs no connection.

    Raises:
        SettingsError: a setting cannot work; the sentence names its variable.
    """
    allow_list = named(
        "WEBHOOK_ALLOWED_HOSTS",
        lambda: WebhookAllowList(
            settings.webhook_allowed_hosts, require_https=settings.environment == "production"
        ),
    )
    _check_webhook_base(settings, allow_list)
    address = named(
        "RABBITMQ_URL",
        lambda: BrokerAddress(
            settings.broker_url, heartbeat_seconds=settings.rabbitmq_heartbeat_seconds
        ),
    )
    # The token alone first: the client complains of it and of the signing secret alike.
    named(
        "INTERNAL_API_TOKEN",
        lambda: WebhookClient(_secret(settings.internal_api_token), allow_list=allow_list),
    )
    return Parts(
        settings=settings,
        owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        shares=trainer_shares(settings),
        catalogue=catalogue_of(settings),
        store=named("S3_ENDPOINT_URL", lambda: s3_store(settings)),
        allow_list=allow_list,
        client=named(
            "WEBHOOK_SIGNING_SECRET",
            lambda: WebhookClient(
                _secret(settings.internal_api_token),
                allow_list=allow_list,
                signing_secret=_secret(settings.webhook_signing_secret),
                total_deadline_seconds=settings.webhook_timeout_seconds,
            ),
        ),
        topology=topology_of(settings),
        address=address,
        publisher=Publisher(address, name="publisher"),
    )


def job_runner(
    parts: Parts, *, running: RunningJobs, stopping: Callable[[], bool], activity: Activity
) -> JobRunner:
    """What handles the deliveries of the job queues."""
    settings = parts.settings
    return JobRunner(
        owner=parts.owner,
        intake=Intake(
            record=parts.record,
            catalogue=parts.catalogue,
            default_base_model=settings.default_base_model,
            allow_list=parts.allow_list,
            webhook_base_url=settings.webhook_base_url,
            max_images=settings.max_images,
        ),
        attempts=Attempts(
            rules=AttemptRules(
                bucket=settings.s3_bucket,
                work_dir=settings.work_dir,
                max_attempts=settings.max_attempts,
                lease_term_seconds=settings.lease_term_seconds,
                lease_renew_seconds=settings.lease_renew_seconds,
                progress_interval_seconds=settings.progress_interval_seconds,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            topology=parts.topology,
            stages=StageRunner(
                store=parts.store,
                fetcher=image_fetcher(
                    settings, parts.store, allow_files=settings.allow_local_images
                ),
                allow_hub=settings.allow_model_hub,
                time_limit_seconds=settings.job_time_limit_seconds,
                step_launch=settings.step_launch,
                compile_cache_dir=settings.compile_cache_dir,
                trainers_per_gpu=settings.trainers_per_gpu,
            ),
            running=running,
            send_progress=parts.send_progress,
            stopping=stopping,
            activity=activity,
        ),
        conclusion=Conclusion(
            store=parts.store,
            bucket=settings.s3_bucket,
            outbox=Outbox(parts.publisher, parts.topology),
            topology=parts.topology,
            owner=parts.owner,
        ),
        topology=parts.topology,
        record=parts.record,
    )


def outbox_sender(parts: Parts) -> OutboxSender:
    """What handles the deliveries of the events queue."""
    settings = parts.settings
    schedule = RetrySchedule(settings.webhook_retry_seconds, settings.webhook_retry_total_seconds)
    return OutboxSender(parts.client, parts.publisher, parts.topology, parts.record, schedule)


def surroundings(parts: Parts, events: Consumer, activity: Activity) -> Surroundings:
    """What looks at store, queues and GPUs; `events` asks the broker."""
    topology = parts.topology
    return Surroundings(
        store=parts.store,
        url=ObjectUrl(parts.settings.s3_bucket, "jobs/.there"),
        queues={
            "events": (topology.events,),
            "events_retry": tuple(topology.events_retries.values()),
            "events_dead": (topology.events_dead,),
            "dead": (topology.dead,),
        },
        message_count=events.message_count,
        ends=lambda: activity.ends,
    )


def status_server(settings: Settings, health: Health) -> StatusServer:
    """The server of health, status and metrics, its port bound. Raises `SettingsError`."""
    try:
        return StatusServer(settings.http_address, settings.http_port, health.pages())
    except OSError as error:
        place = f"{settings.http_address}:{settings.http_port}"
        raise SettingsError(
            [f"HTTP_PORT cannot be used: {place} cannot be bound ({error.strerror})"]
        ) from None


def trainer_slots(parts: Parts, command: Sequence[str] | None) -> list[TrainerSlot]:
    """The places for trainers; nothing is started yet."""
    settings = parts.settings
    return [
        trainer_slot(
            settings, share, settings.trainer_max_jobs, command, at_a_time=settings.pack_slots
        )
        for share in parts.shares
    ]


def _check_webhook_base(settings: Settings, allow_list: WebhookAllowList) -> None:
    if settings.webhook_base_url:
        try:
            allow_list.check(settings.webhook_base_url)
        except WebhookNotAllowed as error:
            raise SettingsError([f"WEBHOOK_BASE_URL is not allowed: {error}"]) from None


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None
