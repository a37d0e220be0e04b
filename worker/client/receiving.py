"""Is this webhook the worker's, and what does it say? For a backend's views; no framework needed.

received = verify_webhook(request.headers, request.body, token=TOKEN, secrets=[SECRET])
match received.event:
    case ProgressBody(): ...
    case CompleteBody(): ...
    case FailedBody(): ...
"""

import hmac
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from worker.contract.events import CompleteBody, EventName, FailedBody, ProgressBody
from worker.webhooks.signing import is_signature, signing_key

__all__ = [
    "CompleteBody",
    "FailedBody",
    "MalformedWebhook",
    "ProgressBody",
    "ReceivedWebhook",
    "SignatureMismatch",
    "TimestampOutOfTolerance",
    "TokenMismatch",
    "WebhookRejected",
    "parse_event",
    "verify_webhook",
]

#: How far a signature's time may be from now, seconds; what the specification's libraries allow.
TOLERANCE_SECONDS = 300.0

Event = ProgressBody | CompleteBody | FailedBody

_EVENTS: dict[EventName, type[ProgressBody] | type[CompleteBody] | type[FailedBody]] = {
    "progress": ProgressBody,
    "complete": CompleteBody,
    "failed": FailedBody,
}


class WebhookRejected(Exception):  # noqa: N818 - a decision, not a malfunction
    """The request is not to be acted on.

    Attributes:
        status: what to answer; none of them makes the worker try again.
    """

    status = 401


class TokenMismatch(WebhookRejected):
    """It has no bearer token, or another one."""


class SignatureMismatch(WebhookRejected):
    """It is not signed with any of the secrets, or has been changed on its way."""


class TimestampOutOfTolerance(WebhookRejected):
    """It was signed too long ago, or in the future: a replay, or a wrong clock."""


class MalformedWebhook(WebhookRejected):
    """It is the sender's, but not what the contract says."""

    status = 400


@dataclass(frozen=True)
class ReceivedWebhook:
    """A webhook that may be acted on.

    Attributes:
        event: what it says.
        idempotency_key: the same on every try of one event; keep it to tell a repeat.
        sequence: of a progress report: a higher one of the same job is newer. None for the others.
    """

    event: Event
    idempotency_key: str
    sequence: int | None


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    *,
    token: str | None = None,
    secrets: str | Iterable[str] = (),
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> ReceivedWebhook:
    """Check who sent a webhook, then read it. Comparisons take the same time wherever they differ.

    Args:
        headers: as they came; names in any case.
        body: the bytes as they came, not JSON that was decoded and written again.
        token: the operator's `INTERNAL_API_TOKEN`.
        secrets: `WEBHOOK_SIGNING_SECRET`: one, or the new and the old one while they are changed.
        tolerance_seconds: how old a signature may be.
        now: Unix time in seconds; the system's if None.

    Raises:
        ValueError: neither token nor secret is given, so nothing can be checked; or a secret is
            not one.
        WebhookRejected: `status` says what to answer. Every reason has a type of its own.
    """
    keys = [signing_key(s) for s in ([secrets] if isinstance(secrets, str) else secrets) if s]
    if not keys and not token:
        raise ValueError("give a token or a secret: without both anybody could have sent this")
    sent = {name.lower(): value for name, value in headers.items()}
    if token:
        _check_token(sent.get("authorization", ""), token)
    if keys:
        _check_signature(sent, body, keys, tolerance_seconds, time.time() if now is None else now)
    # What is signed is webhook-id; the worker sends the same twice.
    key = sent.get("webhook-id" if keys else "idempotency-key", "")
    return parse_event(body, key)


def parse_event(body: bytes, idempotency_key: str) -> ReceivedWebhook:
    """Read a webhook of which it is known who sent it. Fields of later versions are ignored.

    Raises:
        MalformedWebhook: not JSON, a field is missing or wrong, or the key is of another job.
    """
    try:
        job_id = json.loads(body)["job_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedWebhook("the body is not a JSON object with a job_id") from None
    # A job id may itself hold colons: what follows it is the event.
    found = re.fullmatch(
        rf"{re.escape(str(job_id))}:(?:(?P<event>complete|failed)|progress:(?P<sequence>[0-9]+))",
        idempotency_key,
    )
    if found is None:
        raise MalformedWebhook("Idempotency-Key is not <job_id>:<event>[:<sequence>] of this body")
    name: EventName = "progress"
    if found["event"]:
        name = "complete" if found["event"] == "complete" else "failed"
    try:
        event = _EVENTS[name].model_validate_json(body, extra="ignore")
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise MalformedWebhook(f"not a {name} event: {fields}") from None
    return ReceivedWebhook(
        event, idempotency_key, int(found["sequence"]) if found["sequence"] else None
    )


def _check_token(authorization: str, token: str) -> None:
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise TokenMismatch("Authorization has not the bearer token")


def _check_signature(
    sent: Mapping[str, str], body: bytes, keys: list[bytes], tolerance_seconds: float, now: float
) -> None:
    message_id, timestamp = sent.get("webhook-id", ""), sent.get("webhook-timestamp", "")
    if not message_id or not re.fullmatch("[0-9]{1,12}", timestamp):
        raise SignatureMismatch("webhook-id or webhook-timestamp is missing or malformed")
    signed = is_signature(
        sent.get("webhook-signature", ""),
        keys,
        message_id=message_id,
        timestamp_seconds=int(timestamp),
        body=body,
    )
    if not signed:
        raise SignatureMismatch("webhook-signature is of none of the secrets")
    if abs(now - int(timestamp)) > tolerance_seconds:
        raise TimestampOutOfTolerance(
            f"webhook-timestamp is {now - int(timestamp):.0f} s off; {tolerance_seconds:g} are "
            "allowed"
        )
