"""A backend acts on the worker's webhooks and on nobody else's."""

import json
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from worker.client.receiving import (
    CompleteBody,
    FailedBody,
    MalformedWebhook,
    ProgressBody,
    SignatureMismatch,
    TimestampOutOfTolerance,
    TokenMismatch,
    WebhookRejected,
    parse_event,
    verify_webhook,
)
from worker.contract import examples
from worker.contract.events import idempotency_key
from worker.webhooks.signing import signature_headers, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "C" * 32
TOKEN = "a-token"
NOW = 1_800_000_000
KINDS = {"progress": ProgressBody, "complete": CompleteBody, "failed": FailedBody}


def webhook(event="progress", *, secret=SECRET, token=TOKEN, at=NOW, body=None):
    """Headers and body, as the worker sends them."""
    example = examples.EVENTS[event]
    body = example.body() if body is None else body
    key = idempotency_key(example.job_id, event, 1_000_001 if event == "progress" else None)
    headers = {"Idempotency-Key": key, "Authorization": f"Bearer {token}"}
    if secret:
        headers |= signature_headers(
            signing_key(secret), message_id=key, timestamp_seconds=at, body=body
        )
    return headers, body


@pytest.mark.parametrize("event", KINDS)
def test_each_event_is_read_as_what_it_is(event):
    headers, body = webhook(event)
    received = verify_webhook(headers, body, token=TOKEN, secrets=SECRET, now=NOW)
    assert isinstance(received.event, KINDS[event])
    assert received.event == examples.EVENTS[event]
    assert received.idempotency_key == headers["Idempotency-Key"]
    assert received.sequence == (1_000_001 if event == "progress" else None)


def test_names_of_headers_come_in_any_case():
    headers, body = webhook()
    for spelled in (str.lower, str.upper, str.title):
        as_sent = {spelled(name): value for name, value in headers.items()}
        assert verify_webhook(as_sent, body, token=TOKEN, secrets=SECRET, now=NOW)


def test_without_token_and_secret_nothing_is_accepted():
    headers, body = webhook()
    for empty in ({}, {"token": ""}, {"secrets": ""}, {"secrets": ["", ""]}):
        with pytest.raises(ValueError, match="give a token or a secret"):
            verify_webhook(headers, body, **empty)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer other", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN],
)
def test_another_token_is_refused(authorization):
    headers, body = webhook()
    del headers["Authorization"]
    if authorization is not None:
        headers["Authorization"] = authorization
    with pytest.raises(TokenMismatch) as caught:
        verify_webhook(headers, body, token=TOKEN, secrets=SECRET, now=NOW)
    assert caught.value.status == 401
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "another"},
        {"webhook-id": None},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": None},
        {"webhook-timestamp": "9" * 400},
        {"webhook-signature": None},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,é\ud800"},
        {"webhook-id": "\udcff"},
        {"webhook-signature": "v1a,AAAA"},
    ],
    ids=str,
)
def test_what_is_not_signed_as_it_says_is_refused(change):
    headers, body = webhook()
    headers = {k: v for k, v in (headers | change).items() if v is not None}
    with pytest.raises(SignatureMismatch):
        verify_webhook(headers, body, token=TOKEN, secrets=SECRET, now=NOW)


def test_a_changed_body_is_refused():
    headers, body = webhook("complete")
    with pytest.raises(SignatureMismatch):
        verify_webhook(headers, body.replace(b"s3://", b"s4://"), secrets=SECRET, now=NOW)


def test_a_signature_of_another_secret_is_refused_and_a_valid_token_does_not_help():
    headers, body = webhook(secret=OTHER_SECRET)
    with pytest.raises(SignatureMismatch):
        verify_webhook(headers, body, token=TOKEN, secrets=SECRET, now=NOW)


def test_while_a_secret_is_changed_both_are_accepted():
    for secret in (SECRET, OTHER_SECRET):
        headers, body = webhook(secret=secret)
        assert verify_webhook(headers, body, secrets=[OTHER_SECRET, SECRET], now=NOW)
    # And a sender may sign with both: one that we know is enough.
    headers, body = webhook(secret=OTHER_SECRET)
    both = headers["webhook-signature"] + " " + webhook()[0]["webhook-signature"]
    assert verify_webhook(headers | {"webhook-signature": both}, body, secrets=SECRET, now=NOW)


@pytest.mark.parametrize("off_seconds", [-301, 301, 10**6])
def test_an_old_or_future_signature_is_refused(off_seconds):
    headers, body = webhook(at=NOW + off_seconds)
    with pytest.raises(TimestampOutOfTolerance, match="300 are allowed"):
        verify_webhook(headers, body, secrets=SECRET, now=NOW)
    assert verify_webhook(headers, body, secrets=SECRET, now=NOW, tolerance_seconds=2e6)


def test_a_signed_key_counts_and_not_the_one_beside_it():
    headers, body = webhook("complete")
    headers["Idempotency-Key"] = "forged"
    received = verify_webhook(headers, body, secrets=SECRET, now=NOW)
    assert received.idempotency_key == headers["webhook-id"]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"", "j:complete"),
        (b"[]", "j:complete"),
        (b'{"style_id": 1}', "j:complete"),
        (b"[" * 100_000, "j:complete"),
        (b'{"job_id": "j", "style_id": 1}', "j:complete"),
        (b'{"job_id": "j"}', "j:started"),
        (b'{"job_id": "j"}', "j:progress"),
        (b'{"job_id": "j"}', "j:progress:x"),
        (b'{"job_id": "j"}', "other:complete"),
        (b'{"job_id": "j"}', ""),
        (b'{"job_id": null}', "None:complete"),
        (b'{"job_id": "j", "style_id": "x", "error_code": "NEW", "error_message": 1}', "j:failed"),
    ],
)
def test_what_is_no_event_is_malformed(body, key):
    with pytest.raises(MalformedWebhook) as caught:
        parse_event(body, key)
    assert caught.value.status == 400
    assert isinstance(caught.value, WebhookRejected)


def test_a_job_id_may_look_like_an_event():
    body = json.dumps(json.loads(examples.FAILED.body()) | {"job_id": "a:progress:7"}).encode()
    received = parse_event(body, "a:progress:7:failed")
    assert isinstance(received.event, FailedBody)
    assert received.sequence is None


def test_fields_of_later_versions_are_ignored_at_every_depth():
    sent = json.loads(examples.PROGRESS.body())
    sent["new"] = 1
    sent["progress"]["newer"] = [2]
    received = parse_event(json.dumps(sent).encode(), f"{sent['job_id']}:progress:3")
    assert received.event == examples.PROGRESS


# --- against the specification's own library, both ways


@pytest.mark.parametrize("event", KINDS)
def test_the_library_accepts_what_the_worker_signs(event):
    import time

    headers, body = webhook(event, at=int(time.time()))
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER_SECRET).verify(body, headers)


@pytest.mark.parametrize("event", KINDS)
def test_we_accept_what_the_library_signs(event):
    (headers, body), at = webhook(event), datetime.fromtimestamp(NOW, UTC)
    key = headers["Idempotency-Key"]
    signed = {
        "webhook-id": key,
        "webhook-timestamp": str(NOW),
        "webhook-signature": Webhook(SECRET).sign(key, at, body.decode()),
    }
    assert verify_webhook(signed, body, secrets=SECRET, now=NOW).event == examples.EVENTS[event]
    with pytest.raises(SignatureMismatch):
        verify_webhook(signed, body, secrets=OTHER_SECRET, now=NOW)
