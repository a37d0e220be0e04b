"""An S3 server that is quick enough not to be what a benchmark measures, and counts its requests.

One process, one thread, everything in memory, path style. `benchmarks/objects.py` says what it
knows of S3. The store's contract suite runs against it.
"""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.objects import Answer, Buckets, Request, RequestKind
from worker.demo.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from worker.storage.s3 import S3Store
from worker.storage.s3_client import connect

#: Where the counts are read; no bucket can have this name.
_COUNTS_PATH = "/_counts"

_REASONS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    404: "Not Found",
    412: "Precondition Failed",
    501: "Not Implemented",
}


class ObjectServer:
    """A context manager: the server runs inside of the `with` block, in a process of its own.

    Attributes:
        endpoint_url: `http://127.0.0.1:port`.
    """

    endpoint_url: str

    def __enter__(self) -> "ObjectServer":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.object_server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint_url = self._process.stdout.readline().strip()
        if not self.endpoint_url:
            raise RuntimeError(f"the object server ended with {self._process.wait()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a worker (or the AWS SDK) at it."""
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client that talks to it."""
        return connect(**self._arguments)

    def store(self) -> S3Store:
        """The worker's store on it."""
        return S3Store(**self._arguments)

    def counts(self) -> Counter[RequestKind]:
        """The requests so far, by kind."""
        with urllib.request.urlopen(self.endpoint_url + _COUNTS_PATH) as answer:
            rows = json.load(answer)
        return Counter({RequestKind(verb, name, status): n for verb, name, status, n in rows})

    @property
    def _arguments(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint_url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
        }


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive: bytes in, `Request`; `Answer`, bytes out."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._buffer = b""
        self._continued = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for request in self._requests():
            if request.bucket == _COUNTS_PATH[1:]:
                counts = self._buckets.counts.items()
                rows = [[kind.verb, kind.name, kind.status, n] for kind, n in counts]
                self._write(request.method, Answer(body=json.dumps(rows).encode()))
            else:
                self._write(request.method, self._buckets.answer(request))

    def _requests(self) -> Iterator[Request]:
        """What has arrived whole; the rest stays in the buffer."""
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            whole = end + 4 + int(headers.get("content-length", "0"))
            if len(self._buffer) < whole:
                if "expect" in headers and not self._continued:
                    self._continued = True
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = self._buffer[end + 4 : whole]
            self._buffer, self._continued = self._buffer[whole:], False
            method, target, _ = first.split(" ")
            parts = urlsplit(target)
            bucket, _, key = unquote(parts.path)[1:].partition("/")
            query = parse_qs(parts.query, keep_blank_values=True)
            yield Request(
                method, bucket, key, {name: v[0] for name, v in query.items()}, headers, body
            )

    def _write(self, method: str, answer: Answer) -> None:
        lines = [
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self._transport.write(head if method == "HEAD" else head + answer.body)


async def _serve() -> None:
    buckets = Buckets()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(buckets), "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
