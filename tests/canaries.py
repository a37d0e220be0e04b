"""A secret of its own for every setting that holds one, and every spelling it may leak in."""

import base64
from collections.abc import Iterable, Mapping
from urllib.parse import quote

#: Characters that JSON, Python, addresses and base64 each write in their own way.
AWKWARD = '+/"=&% ä'

#: What each setting is set to. Unlike anything else, so that one that is found says which it is.
CANARIES = {
    "INTERNAL_API_TOKEN": "canary-token-7f3a91c2+/=",
    "WEBHOOK_SIGNING_SECRET": "whsec_" + base64.b64encode(b"canary-signing-5d20e8").decode(),
    "RABBITMQ_PASSWORD": f"canary-broker-b81d46{AWKWARD}",
    "AWS_SECRET_ACCESS_KEY": "canary-store-e4c70f+/secret",
    "AWS_SESSION_TOKEN": "canary-session-39ab5e==",
    "HF_TOKEN": "canary-hub-c6f184",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=canary-traces-0be3d7",
}

#: The part of each that no escaping changes: found, it is a leak in any case.
_CORES = {
    "INTERNAL_API_TOKEN": "canary-token-7f3a91c2",
    "WEBHOOK_SIGNING_SECRET": CANARIES["WEBHOOK_SIGNING_SECRET"].removeprefix("whsec_")[:24],
    "RABBITMQ_PASSWORD": "canary-broker-b81d46",
    "AWS_SECRET_ACCESS_KEY": "canary-store-e4c70f",
    "AWS_SESSION_TOKEN": "canary-session-39ab5e",
    "HF_TOKEN": "canary-hub-c6f184",
    "OTEL_EXPORTER_OTLP_HEADERS": "canary-traces-0be3d7",
}


def spellings(core: str) -> set[bytes]:
    """`core` as it is, percent-encoded, in base64 at each of its three places, and in hex."""
    octets = core.encode()
    found = {octets, quote(core, safe="").encode(), octets.hex().encode()}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + octets + b"xx")
        # The ends depend on what is beside; the middle is the secret's alone.
        found.add(encoded[4 : 4 * (len(octets) // 3)])
    return found


def leaks(places: Mapping[str, bytes], cores: Iterable[str] = tuple(_CORES.values())) -> list[str]:
    """Each place that shows a secret, with the secret that it shows."""
    wanted = {core: spellings(core) for core in cores}
    return [
        f"{place} shows {core[:14]}…"
        for place, text in places.items()
        for core, spelled in wanted.items()
        if any(one in text for one in spelled)
    ]
