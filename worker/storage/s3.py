"""The object store behind boto3: Amazon's S3, or any server that speaks its protocol."""

import base64
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from worker.storage.probe import probe_prefix
from worker.storage.s3_client import ATTEMPTS, connect
from worker.storage.s3_errors import storage_error
from worker.storage.store import (
    MAX_READ_BYTES,
    DownloadedObject,
    ObjectHead,
    ObjectMissing,
    ObjectTooLarge,
    ObjectUrl,
    PreconditionFailed,
    StorageError,
    StoreAbilities,
    StoredObject,
    StoreUnavailable,
)

#: Files above this size are uploaded in parts, bytes.
MULTIPART_BYTES = 64 * 1024 * 1024

#: Most bytes asked of a connection at once; what has arrived is taken even if it is less.
CHUNK_BYTES = 1024 * 1024

#: Total time of one download unless the caller says otherwise, seconds.
DOWNLOAD_SECONDS = 300.0


class S3Store:
    """`ObjectStore` on S3."""

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        timeout_seconds: float = 30.0,
        attempts: int = ATTEMPTS,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        """Arguments as in `connect`. No request is made yet."""
        self._client = connect(
            endpoint_url=endpoint_url,
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
        )
        self._checks_uploads = _reads_checksums(self._client.meta.endpoint_url)
        self._transfer = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES // 2
        )

    def read(self, url: ObjectUrl, *, max_bytes: int = MAX_READ_BYTES) -> StoredObject | None:
        """As `ObjectStore.read`."""
        try:
            with _errors_of(url):
                answer = self._client.get_object(Bucket=url.bucket, Key=url.key)
        except ObjectMissing:
            return None
        chunks = self._body(url, answer, max_bytes, DOWNLOAD_SECONDS)
        return StoredObject(
            b"".join(chunks), answer["ETag"], answer["LastModified"], _server_time(answer)
        )

    def write(
        self,
        url: ObjectUrl,
        body: bytes,
        *,
        content_type: str,
        only_if_absent: bool = False,
        only_if_etag: str | None = None,
    ) -> str:
        """As `ObjectStore.write`.

        A request that is tried again after its answer was lost meets its own write and is refused
        with 412. So each write carries an id, and a refused one looks whose object is there.
        """
        write_id = uuid.uuid4().hex
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        if only_if_etag is not None:
            condition = {"IfMatch": only_if_etag}
        try:
            with _errors_of(url):
                answer = self._client.put_object(
                    Bucket=url.bucket,
                    Key=url.key,
                    Body=body,
                    # A digest that every S3 server knows, and refuses other bytes for.
                    ContentMD5=base64.b64encode(digest).decode(),
                    ContentType=content_type,
                    Metadata={"write-id": write_id},
                    **condition,
                )
        except ObjectMissing:
            # If-Match of an object that is gone answers 404.
            raise PreconditionFailed(f"{url} is no longer there.") from None
        except PreconditionFailed:
            standing = self._head(url)
            if standing is None or standing["Metadata"].get("write-id") != write_id:
                raise
            return str(standing["ETag"])
        return str(answer["ETag"])

    def upload(
        self, url: ObjectUrl, path: Path, *, content_type: str, sha256_hex: str | None = None
    ) -> None:
        """As `ObjectStore.upload`; in parts above `MULTIPART_BYTES`."""
        extra: dict[str, Any] = {"ContentType": content_type}
        if self._checks_uploads:
            extra["ChecksumAlgorithm"] = "SHA256"
        if sha256_hex is not None:
            extra["Metadata"] = {"sha256": sha256_hex}
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            with _errors_of(url):
                self._client.upload_fileobj(
                    file, url.bucket, url.key, ExtraArgs=extra, Config=self._transfer
                )
        head = self.head(url)
        if head is None or head.bytes != size_bytes:
            found = "nothing" if head is None else f"{head.bytes} bytes"
            raise StoreUnavailable(f"{url} was stored as {found} instead of {size_bytes} bytes.")

    def download(
        self, url: ObjectUrl, path: Path, *, max_bytes: int, deadline_seconds: float | None = None
    ) -> DownloadedObject:
        """As `ObjectStore.download`."""
        if deadline_seconds is None:
            deadline_seconds = DOWNLOAD_SECONDS
        with _errors_of(url):
            answer = self._client.get_object(Bucket=url.bucket, Key=url.key)
        digest, size_bytes = hashlib.sha256(), 0
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file:
                for chunk in self._body(url, answer, max_bytes, deadline_seconds):
                    file.write(chunk)
                    digest.update(chunk)
                    size_bytes += len(chunk)
            noted = answer["Metadata"].get("sha256")
            if noted is not None and noted != digest.hexdigest():
                raise StoreUnavailable(
                    f"{url} arrived with another digest than it was stored with."
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        content_type = answer.get("ContentType", "application/octet-stream")
        return DownloadedObject(size_bytes, digest.hexdigest(), content_type)

    def head(self, url: ObjectUrl) -> ObjectHead | None:
        """As `ObjectStore.head`."""
        answer = self._head(url)
        if answer is None:
            return None
        return ObjectHead(
            bytes=answer["ContentLength"],
            etag=answer["ETag"],
            content_type=answer.get("ContentType", "application/octet-stream"),
            last_modified=answer["LastModified"],
            server_time=_server_time(answer),
            sha256=answer["Metadata"].get("sha256"),
        )

    def delete(self, url: ObjectUrl) -> None:
        """As `ObjectStore.delete`."""
        with _errors_of(url):
            self._client.delete_object(Bucket=url.bucket, Key=url.key)

    def copy(self, source: ObjectUrl, target: ObjectUrl) -> None:
        """As `ObjectStore.copy`; S3 copies objects of up to 5 GB at once."""
        place = {"Bucket": source.bucket, "Key": source.key}
        with _errors_of(source, target):
            self._client.copy_object(CopySource=place, Bucket=target.bucket, Key=target.key)

    def list(self, prefix: ObjectUrl) -> Iterator[ObjectUrl]:
        """As `ObjectStore.list`."""
        pages = self._client.get_paginator("list_objects_v2")
        with _errors_of(prefix):
            for page in pages.paginate(Bucket=prefix.bucket, Prefix=prefix.key):
                for row in page.get("Contents", ()):
                    yield ObjectUrl(prefix.bucket, row["Key"])

    def probe(self, prefix: ObjectUrl) -> StoreAbilities:
        """As `ObjectStore.probe`."""
        return probe_prefix(self, prefix)

    def _head(self, url: ObjectUrl) -> Any:
        try:
            with _errors_of(url):
                return self._client.head_object(Bucket=url.bucket, Key=url.key)
        except ObjectMissing:
            return None

    def _body(
        self, url: ObjectUrl, answer: Any, max_bytes: int, deadline_seconds: float
    ) -> Iterator[bytes]:
        """The answer's body, chunk by chunk as it arrives, never more than `max_bytes`."""
        deadline = time.monotonic() + deadline_seconds
        # `read(n)` of the public wrapper waits for all n bytes, so a slow drip would never come
        # back to look at the clock; `read1` returns what is there.
        stream = answer["Body"]._raw_stream
        expected_bytes, received_bytes = answer["ContentLength"], 0
        try:
            while received_bytes < expected_bytes:
                if expected_bytes > max_bytes:
                    raise ObjectTooLarge(
                        f"{url} has {expected_bytes} bytes; at most {max_bytes} are taken."
                    )
                with _errors_of(url):
                    chunk = stream.read1(CHUNK_BYTES)
                if not chunk:
                    raise StoreUnavailable(
                        f"{url} broke off after {received_bytes} of {expected_bytes} bytes."
                    )
                received_bytes += len(chunk)
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"{url} did not arrive within {deadline_seconds:g} seconds."
                    )
                yield chunk
        finally:
            answer["Body"].close()


@contextmanager
def _errors_of(url: ObjectUrl, target: ObjectUrl | None = None) -> Iterator[None]:
    """Turn what boto3 raises about `url` (or a copy of it to `target`) into a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except (ClientError, BotoCoreError) as error:
        raise storage_error(error, str(url) if target is None else f"{url} or {target}") from None
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError):
        raise StoreUnavailable(f"The store broke off while it sent {url}.") from None


def _reads_checksums(endpoint: str) -> bool:
    """Whether what stands at `endpoint` reads a checksum that is sent with a file.

    Over https botocore sends it after the file, in a form that not every server of this protocol
    knows; TLS sees to the bytes as well. Over http it is a header.
    """
    parts = urlsplit(endpoint)
    hosts = (".amazonaws.com", ".amazonaws.com.cn")
    return parts.scheme == "http" or (parts.hostname or "").endswith(hosts)


def _server_time(answer: Any) -> datetime:
    """The answer's `Date`: the clock that `LastModified` is also told by."""
    header = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(header) if header else datetime.now(UTC)
