"""What does a person's browser get? One self-contained page that may run its own script alone."""

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from worker.observability.http_server import Page

#: Browsers keep to it: this script, this style, requests to this worker, and nothing else.
_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@lru_cache(maxsize=1)
def status_page() -> Page:
    """The page; what it shows it asks of `/status` itself."""
    body = files("worker.observability").joinpath("status_page.html").read_bytes()
    script = re.search(rb"<script>(.*?)</script>", body, re.DOTALL)
    assert script is not None  # noqa: S101 - the page has one
    digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode()
    policy = _POLICY.format(script=f"sha256-{digest}")
    return Page(200, "text/html; charset=utf-8", body, {"Content-Security-Policy": policy})
