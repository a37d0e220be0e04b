"""How does a receiver learn how a job ended? From a durable queue, until it answers."""

import time
from collections.abc import Callable

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from worker.broker.delivery import Delivery
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.events import ENDPOINTS, EventName, ProgressBody, idempotency_key
from worker.jobs.record import JobRecord, Result
from worker.observability import metrics, tracing
from worker.storage.store import StorageError
from worker.webhooks.client import Answer, WebhookClient
from worker.webhooks.retry import RetrySchedule

log = structlog.get_logger()

#: Header with the number of tries that an event has had.
TRIES_HEADER = "x-lora-tries"


class OutboxMessage(BaseModel):
    """A terminal webhook on its way.

    Attributes:
        event, body: what to send, byte for byte the same on every try.
        base: the receiver. job_id, style_id: whose event it is.
        progress_before, progress_sequence: the report at 100 % that a `complete` is preceded by,
            on its first try only.
        queued_at: seconds since the epoch.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    job_id: str
    style_id: int
    event: EventName
    base: str
    body: str
    queued_at: float
    progress_before: str | None = None
    progress_sequence: int = 0


class Outbox:
    """The way in: returns once the broker has confirmed the event."""

    def __init__(self, publisher: Publisher, topology: Topology) -> None:
        self._publisher, self._topology = publisher, topology

    def put(self, result: Result, last_progress: tuple[ProgressBody, int] | None = None) -> None:
        """Queue the result's terminal event. Raises `PublishFailed`."""
        if result.webhook_base is None:
            return
        body, sequence = last_progress or (None, 0)
        message = OutboxMessage(
            job_id=result.job_id,
            style_id=result.style_id,
            event=result.event,
            base=result.webhook_base,
            body=result.event_body,
            queued_at=time.time(),
            progress_before=body.body().decode() if body else None,
            progress_sequence=sequence,
        )
        self._publisher.publish(
            self._topology.events,
            message.model_dump_json().encode(),
            message_id=idempotency_key(result.job_id, result.event),
            headers={TRIES_HEADER: 0, **tracing.outgoing_headers()},
        )


class OutboxSender:
    """The way out: handles one delivery of the events queue at a time."""

    def __init__(
        self,
        client: WebhookClient,
        publisher: Publisher,
        topology: Topology,
        record: Callable[[str], JobRecord],
        schedule: RetrySchedule,
    ) -> None:
        self._client, self._publisher, self._topology = client, publisher, topology
        self._record, self._schedule = record, schedule

    def handle(self, delivery: Delivery, still_ours: Callable[[], bool] = lambda: True) -> bool:
        """Send the event, then mark it delivered, move it to a later try, or to the dead.

        Args:
            delivery: from the events queue.
            still_ours: False where the broker may have given it to another sender.

        Returns whether the delivery can be acknowledged. An exception means that it cannot.
        """
        try:
            message = OutboxMessage.model_validate_json(delivery.body)
        except ValidationError:
            self._bury(delivery, "the event message is not readable")
            return True
        tries = _count(delivery.headers.get(TRIES_HEADER))
        ids: dict[str, str | int] = {"job_id": message.job_id, "style_id": message.style_id}
        with (
            structlog.contextvars.bound_contextvars(webhook=message.event, **ids),
            tracing.span(f"webhook {message.event}", delivery.headers, **ids),
        ):
            record = self._record(message.job_id)
            try:
                if record.is_delivered():
                    log.info("webhook_already_delivered")
                    return True
                first = tries == 0 and record.claim_first_send()
                if tries == 0 and not first:
                    # The broker has this event twice, and the other one is being sent; or it was
                    # being sent when its sender went away.
                    self._soon(delivery, 1)
                    return True
            except StorageError as error:
                # As a copy: what only comes back counts against a quorum queue's limit.
                log.warning("event_put_off", reason=str(error))
                self._soon(delivery, tries)
                return True
            if first and message.progress_before is not None:
                self._send_last_report(message, message.progress_before, still_ours)
            key = idempotency_key(message.job_id, message.event)
            answer = self._send(message.base, message.event, message.body, key, still_ours)
            age_seconds = max(0.0, time.time() - message.queued_at)
            metrics.OUTBOX_AGE.labels(answer.kind).observe(age_seconds)
            delay = self._schedule.next_delay(tries + 1, answer.retry_after_seconds)
            match answer.kind:
                case "withheld":
                    return False
                case "delivered":
                    self._mark_delivered(record, delivery, tries + 1)
                case "retry" if delay:
                    self._later(delivery, tries + 1, delay)
                case _:
                    self._bury(delivery, answer.reason)
                    self._mark_delivered(record, delivery, tries + 1)
        return True

    def _send_last_report(
        self, message: OutboxMessage, report: str, still_ours: Callable[[], bool]
    ) -> None:
        key = idempotency_key(message.job_id, "progress", message.progress_sequence)
        self._send(message.base, "progress", report, key, still_ours)

    def _send(
        self, base: str, event: EventName, body: str, key: str, still_ours: Callable[[], bool]
    ) -> Answer:
        method, path = ENDPOINTS[event]
        answer = self._client.send(method, base, path, body.encode(), key, still_ours=still_ours)
        level = log.info if answer.kind == "delivered" else log.warning
        level(
            "webhook_sent",
            webhook=event,
            answer=answer.kind,
            status=answer.status,
            reason=answer.reason,
        )
        return answer

    def _mark_delivered(self, record: JobRecord, delivery: Delivery, tries: int) -> None:
        try:
            record.mark_delivered()
        except StorageError as error:
            # It is sent once more, as if its answer had been lost, rather than never marked.
            log.warning("event_not_marked", reason=str(error))
            self._soon(delivery, tries)

    def _soon(self, delivery: Delivery, tries: int) -> None:
        self._later(delivery, tries, self._schedule.rungs_seconds[0])

    def _later(self, delivery: Delivery, tries: int, delay_seconds: float) -> None:
        queue = self._topology.events_retry_for(delay_seconds)
        self._publisher.publish(
            queue,
            delivery.body,
            message_id=delivery.message_id,
            headers={**delivery.kept_headers(), TRIES_HEADER: tries},
        )

    def _bury(self, delivery: Delivery, reason: str) -> None:
        metrics.WEBHOOKS_GIVEN_UP.inc()
        log.error("webhook_given_up", message_id=delivery.message_id, reason=reason)
        self._publisher.publish(
            self._topology.events_dead,
            delivery.body,
            message_id=delivery.message_id,
            headers={**delivery.kept_headers(), "x-lora-reason": reason[:500]},
        )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
