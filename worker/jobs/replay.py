"""How is what was given up tried again? A dead job under a new id, a dead event as it is."""

import json
import uuid

from worker.broker.inspection import QueuedMessage
from worker.contract.events import idempotency_key
from worker.jobs.outbox import TRIES_HEADER, OutboxMessage
from worker.jobs.record import JobRecord


def job_id_of(message: QueuedMessage) -> str:
    """The id of a dead job: as its quarantine says, else the message's."""
    return str(message.headers.get("x-lora-job-id") or message.message_id or "")


def fresh_job(message: QueuedMessage) -> QueuedMessage | None:
    """The same job under a new id, or None where the body is not a JSON object.

    The old id has ended: its receiver was told so, and must not hear of a second end.
    """
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    stem = job_id_of(message).partition(":replay-")[0][:150] or "job"
    job_id = f"{stem}:replay-{uuid.uuid4().hex[:8]}"
    body = {name: value for name, value in body.items() if name != "task_id"}
    if isinstance(body.get("data"), dict):
        inner = {k: v for k, v in body["data"].items() if k not in ("job_id", "task_id")}
        body["data"] = inner
    body["job_id"] = job_id
    return QueuedMessage(
        json.dumps(body).encode(), job_id, {"x-lora-replay-of": job_id_of(message)}
    )


def fresh_event(message: QueuedMessage, record: JobRecord) -> QueuedMessage:
    """The same event, byte for byte, with all its tries before it; its last report has gone out."""
    event = OutboxMessage.model_validate_json(message.body)
    record.clear_delivered()
    body = event.model_copy(update={"progress_before": None}).model_dump_json().encode()
    return QueuedMessage(body, idempotency_key(event.job_id, event.event), {TRIES_HEADER: 0})
