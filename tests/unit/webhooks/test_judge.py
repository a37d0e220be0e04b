"""What an answer means, as a table."""

import pytest

from worker.webhooks.client import judge, parse_retry_after

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((200, 201, 202, 204), "delivered"),
        ((408, 425, 429, 500, 502, 503, 504, 507), "retry"),
        ((410,), "gone"),
        ((400, 401, 403, 404, 405, 409, 413, 422), "refused"),
        ((300, 301, 302, 303, 304, 307, 308), "refused"),
        ((101, 102), "refused"),
    ],
)
def test_the_class_of_a_status(statuses: tuple[int, ...], kind: str) -> None:
    assert {judge(status, None, NOW).kind for status in statuses} == {kind}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("9" * 400, None),
        ("\u0661", None),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", None),
        ("Fri, 31 Dec 2027 23:59:59 +99999999999999999999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_only_a_retry_carries_a_wait() -> None:
    assert judge(503, "7", NOW).retry_after_seconds == 7
    assert judge(404, "7", NOW).retry_after_seconds is None
