"""Signatures are those of the Standard Webhooks specification."""

import base64

import pytest

from worker.webhooks.signing import signature_headers, signing_key


def test_the_published_example_gives_the_published_signature() -> None:
    headers = signature_headers(
        signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp_seconds=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_without_prefix_is_its_own_bytes() -> None:
    encoded = "whsec_" + base64.b64encode(b"plain secret").decode()
    assert signing_key("plain secret") == signing_key(encoded) == b"plain secret"


def test_a_broken_secret_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="not base64") as caught:
        signing_key("whsec_not/base64!")
    assert "not/base64!" not in str(caught.value)
    assert caught.value.__suppress_context__
