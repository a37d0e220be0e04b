"""The search for canaries finds a secret however it is written, or it would prove nothing."""

import base64
import json
import re
from urllib.parse import quote, quote_plus

import pytest

from tests.canaries import CANARIES, leaks
from worker.observability.redaction import REDACTED, Redactor
from worker.settings import SECRETS_OF_LIBRARIES, Settings, load_settings

WRITTEN = {
    "as it is": lambda s: f"token={s};",
    "in JSON in JSON": lambda s: json.dumps(json.dumps({"a": s})),
    "as Python": lambda s: repr({"a": s.encode()}),
    "in an address": lambda s: f"amqp://somebody:{quote(s, safe='')}@broker/",
    "in a query": lambda s: f"https://a/?t={quote_plus(s)}",
    "in lower case escapes": lambda s: re.sub("%..", lambda one: one[0].lower(), quote(s, safe="")),
    "in base64": lambda s: base64.b64encode(s.encode()).decode(),
    "as HTTP's Basic": lambda s: "Basic " + base64.b64encode(f"u:{s}".encode()).decode(),
    "as HTTP's Basic of another": lambda s: base64.b64encode(f"us:{s}".encode()).decode(),
    "in base64 for addresses": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "in hex": lambda s: s.encode().hex(),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("name", CANARIES)
def test_a_canary_is_found_however_it_is_written(name, way):
    text = WRITTEN[way](CANARIES[name])
    assert leaks({"log": text.encode()})
    assert not leaks({"log": b"nothing but canary- and api-key=canary-"})


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("name", CANARIES)
def test_no_log_line_shows_a_secret_however_it_is_written(monkeypatch, name, way):
    for variable, value in CANARIES.items():
        monkeypatch.setenv(variable, value)
    line = Redactor(load_settings().secret_values)(WRITTEN[way](CANARIES[name]))
    assert REDACTED in line
    assert not leaks({"log": line.encode()})


def test_every_setting_that_holds_a_secret_has_a_canary():
    secret = {
        name.upper()
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    # The password in RABBITMQ_URL is RABBITMQ_PASSWORD's.
    assert secret - {"RABBITMQ_URL"} <= set(CANARIES)
    unusual = {"HUGGING_FACE_HUB_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"}
    assert set(SECRETS_OF_LIBRARIES) - unusual <= set(CANARIES)


def test_the_password_in_the_brokers_address_is_a_secret_by_itself(monkeypatch):
    monkeypatch.setenv("RABBITMQ_URL", "amqp://me:p%40ss-word-1@broker/")
    assert "p@ss-word-1" in load_settings().secret_values
