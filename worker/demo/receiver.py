"""A webhook receiver: keeps a journal of what arrives, and answers as it is told to."""

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

#: Longest body that is read, bytes.
MAX_BODY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Received:
    """One request as it arrived.

    Attributes:
        method, path: as in the request line. headers: names in lower case.
        body: the raw bytes. json: them as JSON, None if they are not.
        monotonic_seconds: when, by this process' monotonic clock.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    json: Any
    monotonic_seconds: float

    @property
    def event(self) -> str:
        """`progress`, `complete`, `failed`: the last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Reply:
    """What to answer; `lost` takes the request and closes the connection without a word."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    lost: bool = False


def accept(request: Received) -> Reply:
    """Answer 200 to everything."""
    return Reply()


class Receiver:
    """An HTTP server on a thread: a context manager, or `start()` and `stop()`.

    Attributes:
        respond: called for each request, on a thread of its own; may be replaced at any time.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        respond: Callable[[Received], Reply] = accept,
        journal_file: Path | None = None,
        on_request: Callable[[Received, Reply], None] | None = None,
    ) -> None:
        self.respond = respond
        self._journal_file = journal_file
        self._on_request = on_request
        self._journal: list[Received] = []
        self._arrived = threading.Condition()
        receiver = self

        class Handler(_Handler):
            take = staticmethod(receiver._take)

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """What a job's `webhook_url` says."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        """What `WEBHOOK_ALLOWED_HOSTS` says."""
        return f"127.0.0.1:{self.port}"

    @property
    def journal(self) -> list[Received]:
        """Everything that arrived, oldest first."""
        with self._arrived:
            return list(self._journal)

    def wait_for(
        self, wanted: Callable[[list[Received]], bool], timeout_seconds: float
    ) -> list[Received]:
        """Wait until `wanted(requests)`; returns the requests.

        Raises:
            TimeoutError: it did not come true; the text lists what arrived.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: wanted(self._journal), timeout_seconds):
                came = [f"{r.method} {r.path}" for r in self._journal]
                raise TimeoutError(f"not within {timeout_seconds:g} s; arrived: {came}")
            return list(self._journal)

    def start(self) -> "Receiver":
        """Serve on a thread of its own."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving, if it has begun, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()  # waits for a loop that has to be there
        self._server.server_close()

    def __enter__(self) -> "Receiver":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _take(self, request: Received) -> Reply:
        reply = self.respond(request)
        with self._arrived:
            self._journal.append(request)
            if self._journal_file is not None:
                with self._journal_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(_journal_row(request, reply)) + "\n")
            if self._on_request is not None:
                self._on_request(request, reply)
            self._arrived.notify_all()
        return reply


class _Server(ThreadingHTTPServer):
    #: Connections that may wait to be accepted. The five of the base class are too few for a crowd
    #: of workers: the sixth waits a second or more until TCP tries again.
    request_queue_size = 1024
    daemon_threads = True
    # A test that leaves a request hanging must not hang with it.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a sender that went away: workers may be killed at any time."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: A connection on which nothing comes for so long is closed, seconds.
    timeout = 60

    take: Callable[[Received], Reply]

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        try:
            parsed = json.loads(body) if body else None
        except ValueError:
            parsed = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.take(
            Received(self.command, self.path, headers, body, parsed, time.monotonic())
        )
        if reply.lost:
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):  # the sender may not have waited for it
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    def do_GET(self) -> None:
        """A health check is answered, not noted."""
        if self.path == "/health":
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
        else:
            self._answer()

    do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """The journal is the log."""


def _journal_row(request: Received, reply: Reply) -> dict[str, Any]:
    headers = {n: v for n, v in request.headers.items() if n != "authorization"}
    return {
        "monotonic_seconds": round(request.monotonic_seconds, 3),
        "method": request.method,
        "path": request.path,
        "headers": headers,
        "json": request.json,
        "body": request.body.decode(errors="replace"),
        "status": reply.status,
    }


def _print_line(request: Received, reply: Reply) -> None:
    text = json.dumps(request.json, ensure_ascii=False)
    line = f"{request.method} {request.path} {reply.status} {text}\n"
    sys.stdout.write(line)
    sys.stdout.flush()


def main() -> None:
    """Run a receiver alone until interrupted; prints one line an event."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--journal", type=Path, help="file to append JSON lines to")
    arguments = parser.parse_args()
    # Held back from before there are threads until they are waited for: none is missed.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with Receiver(
        host=arguments.host,
        port=arguments.port,
        journal_file=arguments.journal,
        on_request=_print_line,
    ) as receiver:
        sys.stdout.write(f"receiver on http://{arguments.host}:{receiver.port}\n")
        sys.stdout.flush()
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
