"""Keep secrets out of text: known values in every spelling, and passwords in addresses."""

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

#: What stands where a secret stood.
REDACTED = "[redacted]"

#: Shorter values are not looked for, characters: they would turn up in ordinary words.
SHORTEST_SECRET = 4

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
    spelled = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode().rstrip("="),
    }
    for _ in range(ESCAPES):
        spelled |= {escaped for text in spelled for escaped in _escaped(text)}
    return spelled


def _escaped(text: str) -> tuple[str, ...]:
    return (
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(text.encode("utf-8", "surrogateescape"))[2:-1],
    )
