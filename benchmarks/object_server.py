"""An S3 server that is quick enough not to be what a benchmark measures, and counts its requests.

One process, one thread, everything in memory, no signature checked: PUT, GET, HEAD, DELETE, COPY,
LIST (version 2) and the creation of buckets, path style, with the conditions If-Match and
If-None-Match. What it does not know (parts of large files, ranges, versions) it refuses with 501.
The store's contract suite runs against it.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from worker.demo.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from worker.storage.s3 import S3Store, connect

#: Most keys in one page of a listing, as at Amazon's.
PAGE_KEYS = 1000

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


@dataclass(frozen=True)
class RequestKind:
    """What was asked for and answered: `GET`, `lease.json`, 404.

    Attributes:
        verb: PUT, GET, HEAD, DELETE, COPY or LIST.
        name: the last part of the key.
    """

    verb: str
    name: str
    status: int


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


@dataclass(frozen=True)
class _Object:
    body: bytes
    etag: str
    modified: str
    headers: dict[str, str]


@dataclass(frozen=True)
class _Request:
    """Attributes: query: first value of each name. headers: names in lower case."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _error(status: int, code: str) -> _Answer:
    return _Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


class _Buckets:
    """The objects, and what each request does to them."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, _Object]] = {}
        self.counts: Counter[RequestKind] = Counter()

    def answer(self, request: _Request) -> _Answer:
        if not request.key and request.method == "PUT":
            self._buckets.setdefault(request.bucket, {})
            return _Answer()
        verb, answer = self._answer(request)
        name = request.key.rpartition("/")[2]
        self.counts[RequestKind(verb, name, answer.status)] += 1
        return answer

    def _answer(self, request: _Request) -> tuple[str, _Answer]:
        objects = self._buckets.get(request.bucket)
        copying = "x-amz-copy-source" in request.headers
        verb = "LIST" if not request.key else "COPY" if copying else request.method
        if objects is None:
            return verb, _error(404, "NoSuchBucket")
        if {"uploads", "uploadId"} & request.query.keys() or "range" in request.headers:
            return verb, _error(501, "NotImplemented")
        match verb:
            case "PUT":
                return verb, _put(objects, request)
            case "GET" | "HEAD":
                return verb, _get(objects, request)
            case "COPY":
                return verb, self._copy(objects, request)
            case "LIST" if request.query.get("list-type") == "2":
                return verb, _list(objects, request)
            case "DELETE":
                objects.pop(request.key, None)
                return verb, _Answer(204)
        return verb, _error(501, "NotImplemented")

    def _copy(self, objects: dict[str, _Object], request: _Request) -> _Answer:
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        source = self._buckets.get(bucket, {}).get(key)
        if source is None:
            return _error(404, "NoSuchKey")
        copied = _Object(source.body, source.etag, formatdate(usegmt=True), source.headers)
        objects[request.key] = copied
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return _Answer(
            body=(
                f"<CopyObjectResult><ETag>{escape(copied.etag)}</ETag>"
                f"<LastModified>{moment}</LastModified></CopyObjectResult>"
            ).encode()
        )


def _put(objects: dict[str, _Object], request: _Request) -> _Answer:
    standing, headers = objects.get(request.key), request.headers
    if headers.get("if-none-match") == "*" and standing is not None:
        return _error(412, "PreconditionFailed")
    if (wanted := headers.get("if-match")) is not None:
        if standing is None:
            return _error(404, "NoSuchKey")
        if wanted not in ("*", standing.etag):
            return _error(412, "PreconditionFailed")
    if "aws-chunked" in headers.get("content-encoding", ""):
        return _error(501, "NotImplemented")
    kept = {n: v for n, v in headers.items() if n.startswith("x-amz-meta-") or n == "content-type"}
    etag = f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'
    objects[request.key] = _Object(request.body, etag, formatdate(usegmt=True), kept)
    return _Answer(headers={"ETag": etag})


def _get(objects: dict[str, _Object], request: _Request) -> _Answer:
    found = objects.get(request.key)
    if found is None:
        return _error(404, "NoSuchKey")
    return _Answer(
        body=found.body,
        headers={"ETag": found.etag, "Last-Modified": found.modified, **found.headers},
    )


def _list(objects: dict[str, _Object], request: _Request) -> _Answer:
    prefix = request.query.get("prefix", "")
    after = request.query.get("continuation-token", "")
    keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
    page = keys[:PAGE_KEYS]
    rows = "".join(
        f"<Contents><Key>{quote(key)}</Key><Size>{len(objects[key].body)}</Size>"
        f"<ETag>{escape(objects[key].etag)}</ETag></Contents>"
        for key in page
    )
    more = len(keys) > len(page)
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return _Answer(
        body=(
            f"<ListBucketResult><EncodingType>url</EncodingType><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        ).encode()
    )


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive: bytes in, `_Request`; `_Answer`, bytes out."""

    def __init__(self, buckets: _Buckets) -> None:
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
                self._write(request.method, _Answer(body=json.dumps(rows).encode()))
            else:
                self._write(request.method, self._buckets.answer(request))

    def _requests(self) -> Iterator[_Request]:
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
            yield _Request(
                method, bucket, key, {name: v[0] for name, v in query.items()}, headers, body
            )

    def _write(self, method: str, answer: _Answer) -> None:
        lines = [
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self._transport.write(head if method == "HEAD" else head + answer.body)


async def _serve() -> None:
    buckets = _Buckets()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(buckets), "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
