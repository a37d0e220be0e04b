"""What an S3 request does to the objects of a server in memory, and how often each kind came.

PUT, GET, HEAD, DELETE, COPY, LIST (version 2) and the creation of buckets, with the conditions
If-Match and If-None-Match. What is not known (parts of large files, ranges, versions) is refused
with 501; signatures and checksums are not looked at.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

#: Most keys in one page of a listing, as at Amazon's.
PAGE_KEYS = 1000


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


@dataclass(frozen=True)
class _Object:
    body: bytes
    etag: str
    modified: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        key: empty where the bucket itself is meant.
        query: first value of each name. headers: names in lower case.
    """

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What comes back; `Date` and `Content-Length` are added on the way."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _error(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


class Buckets:
    """The objects, and what each request does to them."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, _Object]] = {}
        self.counts: Counter[RequestKind] = Counter()

    def answer(self, request: Request) -> Answer:
        """Do what is asked, and count it."""
        if not request.key and request.method == "PUT":
            self._buckets.setdefault(request.bucket, {})
            return Answer()
        verb, answer = self._answer(request)
        name = request.key.rpartition("/")[2]
        self.counts[RequestKind(verb, name, answer.status)] += 1
        return answer

    def _answer(self, request: Request) -> tuple[str, Answer]:
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
                return verb, Answer(204)
        return verb, _error(501, "NotImplemented")

    def _copy(self, objects: dict[str, _Object], request: Request) -> Answer:
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        source = self._buckets.get(bucket, {}).get(key)
        if source is None:
            return _error(404, "NoSuchKey")
        copied = _Object(source.body, source.etag, formatdate(usegmt=True), source.headers)
        objects[request.key] = copied
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return Answer(
            body=(
                f"<CopyObjectResult><ETag>{escape(copied.etag)}</ETag>"
                f"<LastModified>{moment}</LastModified></CopyObjectResult>"
            ).encode()
        )


def _put(objects: dict[str, _Object], request: Request) -> Answer:
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
    return Answer(headers={"ETag": etag})


def _get(objects: dict[str, _Object], request: Request) -> Answer:
    found = objects.get(request.key)
    if found is None:
        return _error(404, "NoSuchKey")
    return Answer(
        body=found.body,
        headers={"ETag": found.etag, "Last-Modified": found.modified, **found.headers},
    )


def _list(objects: dict[str, _Object], request: Request) -> Answer:
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
    return Answer(
        body=(
            f"<ListBucketResult><EncodingType>url</EncodingType><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        ).encode()
    )
