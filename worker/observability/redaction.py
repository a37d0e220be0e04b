"""Keep secrets out of text: known values in every spelling, and passwords in addresses."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

#: What stands where a secret stood.
REDACTED = "[redacted]"

#: Shorter values are not looked for, characters: they would turn up in ordinary words.
SHORTEST_SECRET = 4

#: Shorter encodings are not looked for either, characters: a base64 text of a few letters is one of
#: thousands that occur.
SHORTEST_ENCODING = 8

#: Times that a value in a line may have been escaped, one inside of the other.
ESCAPES = 3

# No @ is needed in the text for this to be quick: the user name may not hold a slash or a colon.
_USERINFO = re.compile(r"(?<=://)[^/\s:@\"']*:[^/\s\"']*@")


class Redactor:
    """Replaces secrets in text. Immutable, so any thread may use it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {s for secret in secrets if secret for s in _spellings(secret)}
        usable = sorted((s for s in spellings if len(s) >= SHORTEST_SECRET), key=len, reverse=True)
        # The longest first, so that a secret that begins another leaves no remainder.
        self._known = re.compile("|".join(map(re.escape, usable))) if usable else None

    def __call__(self, text: str) -> str:
        """The text without the known secrets, and without `user:password@` in addresses."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        if "://" in text:
            text = _USERINFO.sub(f"{REDACTED}@", text)
        return text


def _spellings(secret: str) -> set[str]:
    """How a secret may be spelled in a log line: encoded, then escaped up to three times over.

    A line of JSON that quotes a body of JSON that quotes a dict of Python is three times. A plain
    token has one spelling however often it is escaped.
    """
    spelled = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    spelled |= {_lower_escapes(text) for text in spelled}
    spelled |= {text for text in _encoded(secret) if len(text) >= SHORTEST_ENCODING}
    for _ in range(ESCAPES):
        spelled |= {escaped for text in spelled for escaped in _escaped(text)}
    return spelled


def _lower_escapes(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text)


def _encoded(secret: str) -> set[str]:
    """In base64, wherever in the encoded text it begins (`user:secret` is one text), and in hex."""
    octets = secret.encode("utf-8", "surrogateescape")
    found = {binascii.hexlify(octets).decode()}
    for before in range(3):
        # A character stands for 6 bits: those at both ends also depend on what is beside.
        first, last = -(-before * 8 // 6), (before + len(octets)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + octets).decode()[first:last])
    return found


def _escaped(text: str) -> tuple[str, ...]:
    return (
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(text.encode("utf-8", "surrogateescape"))[2:-1],
    )
