"""An address means one host to us and to every parser behind us, or it is refused."""

import pytest

from worker.outbound.address import HostList, parse_address


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("HTTPS://API.Example.COM:443/", "https://api.example.com/"),
        ("http://api.example.com:80/a", "http://api.example.com/a"),
        ("http://api.example.com:443", "http://api.example.com:443"),
        ("http://[::0001]:8080/x", "http://[::1]:8080/x"),
        ("https://h/a?b=c&d", "https://h/a?b=c&d"),
        ("http://my_service:8000", "http://my_service:8000"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_address_has_one_canonical_spelling(text: str, canonical: str) -> None:
    assert str(parse_address(text)) == canonical


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("a.example", ["https://a.example", "http://a.example"], ["https://a.example:8443"]),
        (
            "a.example:8443",
            ["https://a.example:8443", "http://a.example:8443"],
            ["https://a.example"],
        ),
        ("https://a.example", ["https://a.example:443"], ["http://a.example"]),
        ("http://a.example:8000", ["http://a.example:8000"], ["https://a.example:8000"]),
        ("[::1]:9", ["http://[0:0::1]:9"], ["http://[::2]:9", "http://[::1]"]),
        ("A.Example", ["https://a.example"], ["https://b.a.example", "https://example"]),
    ],
)
def test_an_entry_allows_exactly_its_host(
    entry: str, allowed: list[str], refused: list[str]
) -> None:
    hosts = HostList([entry])
    assert all(hosts.allows(parse_address(url).origin) for url in allowed)
    assert not any(hosts.allows(parse_address(url).origin) for url in refused)


@pytest.mark.parametrize("entry", ["*.example.com", "a.example/path", "a b", "", "ftp://a", "a:x"])
def test_an_entry_that_is_none_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host, host:port or origin"):
        HostList([entry])


def test_an_empty_list_allows_nothing() -> None:
    assert not HostList([]).allows(parse_address("https://localhost").origin)
