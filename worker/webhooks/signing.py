"""Signatures of the Standard Webhooks specification (standardwebhooks.com, version 1), pure."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

#: How a secret begins that is given in base64.
SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix


def signing_key(secret: str) -> bytes:
    """The key that a secret stands for: base64 after `whsec_`, else its own bytes.

    Raises:
        ValueError: what follows `whsec_` is not base64; the text does not repeat it.
    """
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the signing secret is not base64 after {SECRET_PREFIX}") from None


def signature_headers(
    key: bytes, *, message_id: str, timestamp_seconds: int, body: bytes
) -> dict[str, str]:
    """The three headers. Signed is `id.timestamp.body` with HMAC-SHA256.

    Args:
        key: from `signing_key`.
        message_id: the same on every try of one event, so that a receiver can drop repeats.
        timestamp_seconds: Unix time of this try.
        body: the bytes that are sent.
    """
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_seconds),
        "webhook-signature": _signature(key, message_id, timestamp_seconds, body),
    }


def is_signature(
    given: str,
    keys: Iterable[bytes],
    *,
    message_id: str,
    timestamp_seconds: int,
    body: bytes,
) -> bool:
    """Whether `given`, one or more signatures with spaces between them, has one by a key of `keys`.

    Takes the same time wherever signatures differ.
    """
    expected = [_signature(key, message_id, timestamp_seconds, body).encode() for key in keys]
    # All are compared, so that time does not say which one it was.
    same = [
        hmac.compare_digest(signature.encode("utf-8", "replace"), good)
        for signature in given.split(" ")
        for good in expected
    ]
    return any(same)


def _signature(key: bytes, message_id: str, timestamp_seconds: int, body: bytes) -> str:
    # A framework may hand on bytes that are no text as lone surrogates.
    about = message_id.encode("utf-8", "surrogatepass"), str(timestamp_seconds).encode()
    signed = b".".join((*about, body))
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
