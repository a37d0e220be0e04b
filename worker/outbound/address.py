"""Which host does an address really name? Read so strictly that no two parsers can differ."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Ports that an entry without a port allows.
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]+))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port, each in its one canonical spelling."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


@dataclass(frozen=True)
class Address:
    """An address taken apart: `path` begins with / or is empty; `query` without its question mark.

    `str()` puts it together again from the checked parts, so what is requested is what was read.
    """

    origin: Origin
    path: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.origin}{self.path}" + (f"?{self.query}" if self.query else "")


def parse_address(text: str) -> Address:
    """Read an http or https address.

    Refused is all that URL parsers are known to disagree about: user names, backslashes, spaces
    and control characters, characters outside of ASCII (a host in another script is written in
    its `xn--` form), a dot at the end of the host, IPv6 zones, odd ports, `..`, and fragments.

    Raises:
        ValueError: one clause that says why, to follow the words "the address".
    """
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("has a space, a control character or one that is not ASCII")
    match = _URL.fullmatch(text)
    if match is None or match["scheme"].lower() not in DEFAULT_PORTS:
        raise ValueError("does not start with https:// or http://")
    scheme, path, rest = match["scheme"].lower(), match["path"], match["rest"]
    host, port = _host_and_port(match["authority"])
    if not _PATH.fullmatch(path) or re.search(r"%(?![0-9A-Fa-f]{2})", path):
        raise ValueError("has a path with a character that must be percent-encoded")
    plain = re.sub(r"%2e", ".", path, flags=re.IGNORECASE)
    if any(part in (".", "..") for part in plain.split("/")):
        raise ValueError("has . or .. in its path")
    if "#" in rest:
        raise ValueError("has a fragment")
    origin = Origin(scheme, host, port or DEFAULT_PORTS[scheme])
    return Address(origin, path, rest.removeprefix("?"))


def _host_and_port(authority: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise ValueError("has a user name before the host")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("does not name a plain host")
    host, port = match["host"].lower(), match["port"]
    if port is not None and (port.startswith("0") or len(port) > 5 or int(port) > 65535):
        raise ValueError("has a port that is not from 1 to 65535")
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise ValueError("does not name a valid IPv6 address") from None
    elif len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise ValueError("does not name a valid host")
    return host, int(port) if port else None


class HostList:
    """The hosts that an operator allows. An empty list allows none.

    An entry is `host`, `host:port`, or an origin such as `http://host:port`. Without a port it
    allows the default ports alone (443 for https, 80 for http); with a scheme, that scheme alone.
    Hosts match exactly: no wildcards, no subdomains.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises `ValueError` naming the entry that is not one."""
        self._allowed: set[Origin] = set()
        for entry in entries:
            self._allowed |= _origins_of(entry)

    @property
    def origins(self) -> frozenset[Origin]:
        """All that are allowed."""
        return frozenset(self._allowed)

    def allows(self, origin: Origin) -> bool:
        """Whether requests may go there."""
        return origin in self._allowed


def _origins_of(entry: str) -> set[Origin]:
    schemes = [entry.partition("://")[0]] if "://" in entry else list(DEFAULT_PORTS)
    origins = set()
    for scheme in schemes:
        try:
            address = parse_address(f"{scheme}://{entry.rpartition('://')[2]}")
        except ValueError as error:
            raise ValueError(f"{entry!r} is not a host, host:port or origin: it {error}") from None
        if address.path not in ("", "/") or address.query:
            raise ValueError(f"{entry!r} is not a host, host:port or origin: it has a path")
        origins.add(address.origin)
    return origins
