"""A bad setting stops the start and is named; the example file is the settings' own."""

from pathlib import Path

import pytest

from tests.generated import GENERATED
from worker.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("path", sorted(GENERATED))
def test_generated_files_are_what_the_models_give(path):
    assert GENERATED[path](Path(path).read_text()) == Path(path).read_text(), "run make generate"


def test_every_setting_has_a_line_of_explanation():
    assert all(field.description for field in Settings.model_fields.values())


def test_the_names_that_deployments_set_keep_their_meaning(monkeypatch):
    for name, value in {
        "RABBITMQ_HOST": "broker",
        "RABBITMQ_PORT": "5673",
        "RABBITMQ_USER": "me",
        "RABBITMQ_PASS": "p@ss/word",
        "RABBITMQ_VHOST": "v",
        "S3_BUCKET": "results",
        "INTERNAL_API_TOKEN": "token",
        "CUDA_VISIBLE_DEVICES": "1,2",
        "LOG_LEVEL": "DEBUG",
        "ENVIRONMENT": "staging",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.broker_url == "amqp://me:p%40ss%2Fword@broker:5673/v"
    assert settings.internal_api_token.get_secret_value() == "token"
    monkeypatch.setenv("RABBITMQ_URL", "amqp://other/")
    assert load_settings().broker_url == "amqp://other/"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RABBITMQ_PORT": "many"}, "RABBITMQ_PORT is not valid"),
        ({"ENVIRONMENT": "prod"}, "ENVIRONMENT is not valid"),
        ({"LEASE_RENEW_SECONDS": "170"}, "LEASE_RENEW_SECONDS must be at most half"),
        (
            {"PACK_SLOTS": "8", "GPUS_PER_TRAINER": "2"},
            "PACK_SLOTS and GPUS_PER_TRAINER cannot both",
        ),
        ({"ENVIRONMENT": "production"}, "INTERNAL_API_TOKEN is missing"),
        ({"ENVIRONMENT": "production"}, "WEBHOOK_ALLOWED_HOSTS is missing"),
        (
            {"ENVIRONMENT": "production", "WEBHOOK_BASE_URL": "http://api"},
            "WEBHOOK_BASE_URL must start with https://",
        ),
    ],
)
def test_a_bad_setting_is_named(monkeypatch, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_a_secret_is_not_shown_by_a_setting_that_is_wrong(monkeypatch):
    monkeypatch.setenv("RABBITMQ_URL", "amqp://user:hunter2@broker/")
    monkeypatch.setenv("RABBITMQ_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("RABBITMQ_PORT")
    assert "hunter2" not in repr(load_settings())


def test_lists_are_split_at_commas(monkeypatch):
    monkeypatch.setenv("WEBHOOK_ALLOWED_HOSTS", "api.example.com, localhost:8000,")
    assert load_settings().webhook_allowed_hosts == ("api.example.com", "localhost:8000")
