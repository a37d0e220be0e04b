"""What is said of services that are set up otherwise than they should be."""

import pytest

from worker.jobs import service_checks
from worker.settings import load_settings


@pytest.mark.parametrize(
    ("environment", "buckets", "found"),
    [("production", "", ["warning"]), ("production", "media", []), ("development", "", [])],
)
def test_in_production_a_message_that_may_name_any_bucket_is_worth_a_word(
    monkeypatch, environment, buckets, found
):
    monkeypatch.setenv("ENVIRONMENT", environment)
    monkeypatch.setenv("INTERNAL_API_TOKEN", "token")
    monkeypatch.setenv("WEBHOOK_ALLOWED_HOSTS", "api.example.com")
    monkeypatch.setenv("IMAGE_ALLOWED_BUCKETS", buckets)
    findings = service_checks.pictures(load_settings())
    assert [one.verdict for one in findings] == found
    assert all("IMAGE_ALLOWED_BUCKETS" in one.sentence for one in findings)
