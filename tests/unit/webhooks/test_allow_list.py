"""The token goes to the hosts that the operator named, whatever is tried in webhook_url."""

import pytest

from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed

ALLOWED = WebhookAllowList(
    ["api.example.com", "internal:8000", "127.0.0.1:9000", "[::1]:9000"], require_https=False
)

TRICKS = [
    # other hosts
    "https://evil.example",
    "https://example.com",
    "https://sub.api.example.com",
    "https://api.example.com.evil.example",
    "https://evil-api.example.com",
    "https://api-example.com",
    "https://evil.example/api.example.com",
    "https://evil.example/?api.example.com",
    "https://evil.example/https://api.example.com",
    # user names
    "https://api.example.com@evil.example",
    "https://api.example.com:443@evil.example",
    "https://user:password@api.example.com",
    "https://user@api.example.com",
    "https://@api.example.com",
    "https://evil.example#@api.example.com",
    "https://evil.example?@api.example.com",
    # characters that parsers read differently
    "https://evil.example\\@api.example.com",
    "https://api.example.com\\@evil.example",
    "https:\\\\api.example.com",
    "https://api.example.com\\.evil.example",
    "https://api.example.com/\\evil",
    "https://evil.example%2f@api.example.com",
    "https://api.example.com%2f.evil.example",
    "https://api.example.com%00.evil.example",
    "https://api.example.com\x00.evil.example",
    "https://api.example.com\r\nX-Header: 1",
    "https://api.example.com/\r\nX-Header: 1",
    "https://api.example.com\t",
    "https://api.example.com ",
    " https://api.example.com",
    "https://api.example.com /",
    "https://api.example.com/ HTTP/1.1",
    "https://api.example.com;evil.example",
    "https://api.example.com,evil.example",
    "https://api.example.com&evil.example",
    "https://{api.example.com}",
    "https://api.example.com<",
    # other scripts and dots
    "https://api.example.com\u3002evil.example",
    "https://api\uff0eexample.com",
    "https://\u0430pi.example.com",
    "https://\uff41pi.example.com",
    "https://api.example.com\u2044evil",
    "https://api.example.com\u200b",
    "https://api.example.com\ufeff",
    "https://api\u00ad.example.com",
    "https://xn--pi-7kc.example.com",
    "https://api.example.com.",
    "https://api..example.com",
    "https://.api.example.com",
    "https://api.example.com./",
    # ports
    "https://api.example.com:8443",
    "https://api.example.com:",
    "https://api.example.com:0",
    "https://api.example.com:0443",
    "https://api.example.com:65979",
    "https://api.example.com:-1",
    "https://api.example.com:443:443",
    "https://api.example.com:\u0664\u0664\u0663",
    "http://internal",
    "http://internal:80000",
    "http://internal:8001",
    # numeric spellings of an allowed or a local address
    "http://127.1:9000",
    "http://2130706433:9000",
    "http://0x7f000001:9000",
    "http://0x7f.0.0.1:9000",
    "http://0177.0.0.1:9000",
    "http://127.0.0.1.:9000",
    "http://127.0.0.01:9000",
    "http://localhost:9000",
    "http://0.0.0.0:9000",
    "http://169.254.169.254",
    "http://[::1]",
    "http://[::1%25lo]:9000",
    "http://[::1%lo]:9000",
    "http://[::ffff:127.0.0.1]:9000",
    "http://[::]:9000",
    "http://[127.0.0.1]:9000",
    "http://[::1:9000",
    "http://::1:9000",
    # schemes
    "file:///etc/passwd",
    "ftp://api.example.com",
    "gopher://api.example.com",
    "javascript://api.example.com",
    "data:text/plain,api.example.com",
    "//api.example.com",
    "api.example.com",
    "https:api.example.com",
    "https:/api.example.com",
    "https:///api.example.com",
    "httpss://api.example.com",
    "https://",
    "",
    # paths, queries, fragments
    "https://api.example.com/a/../b",
    "https://api.example.com/%2e%2e/b",
    "https://api.example.com/.%2E/b",
    "https://api.example.com/%zz",
    "https://api.example.com?next=",
    "https://api.example.com/?/api/webhooks/training/status",
    "https://api.example.com#",
    "https://evil.example/?/api/webhooks/@api.example.com",
    "https://evil.example/api/webhooks/https://api.example.com",
]


def test_the_table_is_long_enough() -> None:
    assert len(set(TRICKS)) == len(TRICKS) >= 50


@pytest.mark.parametrize("url", TRICKS)
def test_a_trick_is_refused_with_one_sentence(url: str) -> None:
    with pytest.raises(WebhookNotAllowed) as caught:
        ALLOWED.check(url)
    message = caught.value.message
    assert message.endswith(".")
    assert message.isprintable()
    assert "password" not in message
    assert not ALLOWED.allows(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/", "https://api.example.com"),
        ("https://API.example.com:443", "https://api.example.com"),
        ("http://api.example.com", "http://api.example.com"),
        ("https://api.example.com/api/webhooks/training/123/status", "https://api.example.com"),
        ("https://api.example.com/v1/api/webhooks/training/1", "https://api.example.com/v1"),
        ("https://api.example.com/tenants/a%20b/", "https://api.example.com/tenants/a%20b"),
        ("http://internal:8000/", "http://internal:8000"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://[0:0:0:0:0:0:0:1]:9000", "http://[::1]:9000"),
    ],
)
def test_an_allowed_address_is_cut_to_its_base(url: str, base: str) -> None:
    assert str(ALLOWED.check(url)) == base
    assert ALLOWED.allows(url)


def test_plain_http_is_refused_where_https_is_required() -> None:
    strict = WebhookAllowList(["api.example.com", "internal:8000"], require_https=True)
    assert strict.allows("https://api.example.com")
    for url in ("http://api.example.com", "http://internal:8000", "http://api.example.com:443"):
        with pytest.raises(WebhookNotAllowed, match="https://"):
            strict.check(url)


def test_without_an_entry_nobody_is_told_anything() -> None:
    nobody = WebhookAllowList([], require_https=False)
    for url in ("https://api.example.com", "http://localhost", "http://127.0.0.1"):
        with pytest.raises(WebhookNotAllowed, match="WEBHOOK_ALLOWED_HOSTS"):
            nobody.check(url)
