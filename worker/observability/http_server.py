"""Who answers a probe, a scraper, a person's browser? A few fixed pages over HTTP, read-only."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from types import TracebackType

import structlog

log = structlog.get_logger()

#: Longest silence of a client before its connection is closed, seconds.
_SILENCE_SECONDS = 5.0

#: Requests answered at a time; more are turned away.
_AT_A_TIME = 16


@dataclass(frozen=True)
class Page:
    """An answer: status, media type, body, and headers of its own."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class StatusServer:
    """Serves `pages` by path on a thread of its own; a context manager.

    GET and HEAD of those paths are all that there is: no body is read, nothing can be changed.
    """

    def __init__(self, address: str, port: int, pages: Mapping[str, Callable[[str], Page]]) -> None:
        """Bind the port; port 0 takes a free one.

        Args:
            address: where to listen.
            port: as above.
            pages: path and what makes its page of the request's `Accept` header.

        Raises:
            OSError: the port cannot be had.
        """
        self._server = _server_class(address)((address, port), _handler(pages))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="status-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that is served."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "StatusServer":
        self._thread.start()
        log.info("status_server_started", port=self.port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _server_class(address: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = AF_INET6 if ":" in address else AF_INET
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

    return Server


def _handler(pages: Mapping[str, Callable[[str], Page]]) -> type[BaseHTTPRequestHandler]:
    free = threading.BoundedSemaphore(_AT_A_TIME)

    class Handler(BaseHTTPRequestHandler):
        timeout = _SILENCE_SECONDS
        server_version, sys_version = "lora-worker", ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self._send(_text(404, "There is nothing here.\n"), with_body=with_body)
            elif not free.acquire(blocking=False):
                self._send(_text(503, "Too many requests at a time.\n"), with_body=with_body)
            else:
                try:
                    made = page(self.headers.get("Accept", ""))
                except Exception:
                    log.exception("status_page_failed", path=self.path[:100])
                    made = _text(500, "This page failed; see the log.\n")
                finally:
                    free.release()
                self._send(made, with_body=with_body)

        def _send(self, page: Page, *, with_body: bool) -> None:
            self.send_response(page.status)
            headers = {
                "Content-Type": page.content_type,
                "Content-Length": str(len(page.body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                **page.headers,
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(page.body)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError as error:  # a client that went away is no event
                log.debug("status_client_lost", reason=type(error).__name__)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a probe every few seconds would fill the log."""

    return Handler


def _text(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", text.encode())
