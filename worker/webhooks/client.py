"""Send one webhook once, and say what its answer means: delivered, retry, refused, or gone."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from worker import __version__
from worker.observability import metrics, tracing
from worker.outbound.address import Address
from worker.outbound.request import Answer as HttpAnswer
from worker.outbound.request import NotSent, RequestFailed, request
from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed
from worker.webhooks.signing import signature_headers, signing_key

#: Statuses below 500 that pass by themselves (contract §2).
_RETRIED = frozenset({408, 425, 429})

#: Most bytes of an answer that are read, so that its sender is not cut off while it writes.
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What became of one try.

    Attributes:
        kind: `delivered` (2xx); `retry` (it may pass: no answer, 408, 425, 429, 5xx); `refused`
            (repeating it would bring the same: other 4xx, a redirect, a host not allowed);
            `gone` (410: of a progress report, the wish that the job end); `withheld` (nothing was
            sent, because it was not ours to send any more).
        status: HTTP status, None where there was no answer.
        retry_after_seconds: what the receiver asked for, where it did.
        reason: one clause for a log line or a dead letter; no secret in it.
    """

    kind: Literal["delivered", "retry", "refused", "gone", "withheld"]
    status: int | None
    retry_after_seconds: float | None
    reason: str


class WebhookClient:
    """Sends webhooks. Holds no connection; any thread may call it."""

    def __init__(
        self,
        token: str | None,
        *,
        allow_list: WebhookAllowList,
        signing_secret: str | None = None,
        connect_timeout_seconds: float = 5.0,
        total_deadline_seconds: float = 15.0,
    ) -> None:
        """Make a client.

        Args:
            token: the bearer token; without one (None or empty) no Authorization header is sent.
            allow_list: whom it may be sent to.
            signing_secret: signs every webhook if there is one.
            connect_timeout_seconds: for each address of the host.
            total_deadline_seconds: for the whole request and its answer.

        Raises:
            ValueError: the token or the secret cannot be used; the text does not repeat it.
        """
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ValueError("the token has a character that no HTTP header can carry")
        self._token = token
        self._allow_list = allow_list
        self._key = signing_key(signing_secret) if signing_secret else None
        self._connect_timeout_seconds = connect_timeout_seconds
        self._total_deadline_seconds = total_deadline_seconds

    def send(
        self,
        method: str,
        base: str,
        event_path: str,
        body: bytes,
        idempotency_key: str,
        now: float | None = None,
        still_ours: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """Send one webhook once; raises nothing for whatever the other side does.

        Args:
            method: PATCH or POST.
            base: the job's webhook base, or a whole webhook address of it.
            event_path: `/api/webhooks/training/…`, appended to the base.
            body: the JSON, sent as it is.
            idempotency_key: the same on every try of one event.
            now: Unix time in seconds, for the signature and for dates in `Retry-After`; the
                system's if None.
            still_ours: asked at the last moment before anything is written.
        """
        started = time.monotonic()
        answer = self._send(method, base, event_path, body, idempotency_key, now, still_ours)
        metrics.WEBHOOK_DURATION.labels(event_path.rpartition("/")[2], answer.kind).observe(
            time.monotonic() - started
        )
        return answer

    def _send(
        self,
        method: str,
        base: str,
        event_path: str,
        body: bytes,
        idempotency_key: str,
        now: float | None,
        still_ours: Callable[[], bool],
    ) -> Answer:
        try:
            address = self._allow_list.check(base)
        except WebhookNotAllowed as error:
            return Answer("refused", None, None, error.message)
        address = Address(address.origin, address.path + event_path)
        now = time.time() if now is None else now
        try:
            with request(
                method,
                address,
                headers=self._headers(body, idempotency_key, now),
                body=body,
                connect_timeout_seconds=self._connect_timeout_seconds,
                deadline_seconds=self._total_deadline_seconds,
                still_wanted=still_ours,
            ) as answer:
                judged = judge(answer.status, answer.headers.get("Retry-After"), now)
                # The status line has decided; what follows it is only taken off the sender's hands.
                with suppress(RequestFailed):
                    _drain(answer)
                return judged
        except NotSent:
            return Answer("withheld", None, None, "it was not ours to send any more")
        except RequestFailed as error:
            return Answer("retry", None, None, f"{address.origin}: {error}")

    def _headers(self, body: bytes, idempotency_key: str, now: float) -> dict[str, str]:
        headers = {
            "X-Request-Source": "training-server",
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key,
            "User-Agent": f"lora-worker/{__version__}",
            "Accept": "*/*",
            **tracing.outgoing_headers(),
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._key is not None:
            headers |= signature_headers(
                self._key, message_id=idempotency_key, timestamp_seconds=int(now), body=body
            )
        return headers


def judge(status: int, retry_after: str | None, now: float) -> Answer:
    """What an answer means (contract §2). Pure.

    A redirect is refused and not retried: it is never followed, because that would turn PATCH into
    GET and carry the token elsewhere, and asking again only brings the same redirect. Somebody has
    to correct the address; a terminal event waits for that in the dead-letter queue.
    """
    wait_seconds = parse_retry_after(retry_after, now)
    if 200 <= status < 300:
        return Answer("delivered", status, None, f"answered {status}")
    if status == 410:
        return Answer("gone", status, None, "answered 410 Gone")
    if status in _RETRIED or status >= 500:
        return Answer("retry", status, wait_seconds, f"answered {status}")
    if 300 <= status < 400:
        return Answer("refused", status, None, f"answered {status}, a redirect: never followed")
    return Answer("refused", status, None, f"answered {status}")


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a `Retry-After` header: a number or an HTTP date; None if it is neither.

    Args:
        value: the header.
        now: Unix time in seconds.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _drain(answer: HttpAnswer) -> None:
    taken_bytes = 0
    for chunk in answer.chunks():
        taken_bytes += len(chunk)
        if taken_bytes > MAX_ANSWER_BYTES:
            return
