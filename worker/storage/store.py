"""What can one ask of an object store? One protocol, its value types and its errors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

#: Largest object that `ObjectStore.read` holds in memory unless told otherwise, bytes.
MAX_READ_BYTES = 16 * 1024 * 1024

#: Longest key that S3 takes, bytes of UTF-8.
MAX_KEY_BYTES = 1024

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True)
class ObjectUrl:
    """`s3://bucket/key`. The key is taken literally: nothing in it is percent-encoded."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "ObjectUrl":
        """Read `s3://bucket/key`; the key may be empty, for a prefix that is a whole bucket.

        Raises:
            ValueError: with one sentence that names the address.
        """
        rest = text.removeprefix("s3://")
        if rest == text:
            raise ValueError(f"{text[:200]!r} is not an address of the form s3://bucket/key.")
        bucket, _, key = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(f"{text[:200]!r} does not name a valid bucket.")
        if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
            raise ValueError(f"{text[:200]!r}… has a key of more than {MAX_KEY_BYTES} bytes.")
        if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in key):
            raise ValueError(f"{text[:200]!r} has a control character in its key.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def child(self, name: str) -> "ObjectUrl":
        """The object `name` below this prefix, one slash between."""
        separator = "" if not self.key or self.key.endswith("/") else "/"
        return ObjectUrl(self.bucket, f"{self.key}{separator}{name}")


class StorageError(Exception):
    """The store did not do it.

    Attributes:
        message: one sentence that names the object; no secret, no endpoint.
        transient: True where the same call may succeed later without anybody changing anything.
    """

    transient = False

    def __init__(self, message: str, *, transient: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        if transient is not None:
            self.transient = transient


class ObjectMissing(StorageError):  # noqa: N818 - a finding about the object
    """There is no such object."""


class BucketMissing(StorageError):  # noqa: N818
    """There is no such bucket."""


class AccessDenied(StorageError):  # noqa: N818
    """The store refused these credentials, or there are none."""


class PreconditionFailed(StorageError):  # noqa: N818
    """The object is not (or no longer) as the conditional write demanded."""


class ObjectTooLarge(StorageError):  # noqa: N818
    """The object has more bytes than the caller takes."""


class StoreUnavailable(StorageError):  # noqa: N818
    """The store could not be reached, was overloaded, or broke off: try again later."""

    transient = True


@dataclass(frozen=True)
class StoredObject:
    """A small object, read whole.

    Attributes:
        body: its bytes. etag: its version, opaque, for `only_if_etag`.
        last_modified: when it was written, by the store's clock.
        server_time: when it was read, by the same clock (S3: the answer's `Date`).
    """

    body: bytes
    etag: str
    last_modified: datetime
    server_time: datetime

    @property
    def age_seconds(self) -> float:
        """How long ago it was written, both ends by the store's clock; never negative."""
        return max(0.0, (self.server_time - self.last_modified).total_seconds())


@dataclass(frozen=True)
class ObjectHead:
    """What is known of an object without its body.

    Attributes:
        bytes: size. etag, last_modified, server_time: as in `StoredObject`.
        sha256: hex digest that the uploader noted, where it noted one.
    """

    bytes: int
    etag: str
    content_type: str
    last_modified: datetime
    server_time: datetime
    sha256: str | None = None


@dataclass(frozen=True)
class DownloadedObject:
    """A file that was fetched whole: size in bytes, hex digest, the store's content type."""

    bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True)
class StoreAbilities:
    """What a prefix of a store can do, found by trying.

    Attributes:
        writable: objects can be written there.
        conditional_put: `If-None-Match` and `If-Match` are enforced, not ignored.
        reason: one sentence why not, where one of them is False.
    """

    writable: bool
    conditional_put: bool
    reason: str = ""


class ObjectStore(Protocol):
    """An object store. Every method may raise `StorageError` and is safe to call from any thread.

    An object that is absent reads as None; a bucket that is absent is an error everywhere.
    """

    def read(self, url: ObjectUrl, *, max_bytes: int = MAX_READ_BYTES) -> StoredObject | None:
        """A small object whole, or None. Raises `ObjectTooLarge` above `max_bytes`."""

    def write(
        self,
        url: ObjectUrl,
        body: bytes,
        *,
        content_type: str,
        only_if_absent: bool = False,
        only_if_etag: str | None = None,
    ) -> str:
        """Write a small object at once; returns its etag.

        A conditional write that raises `StoreUnavailable` may or may not have happened; one that
        raises `PreconditionFailed` has not.

        Raises:
            PreconditionFailed: an object is there (`only_if_absent`), or none with that etag.
        """

    def upload(
        self, url: ObjectUrl, path: Path, *, content_type: str, sha256_hex: str | None = None
    ) -> None:
        """Store a file of any size, checksummed on the way, its size verified afterwards.

        `sha256_hex` is noted beside the object; `download` verifies it.
        """

    def download(
        self, url: ObjectUrl, path: Path, *, max_bytes: int, deadline_seconds: float | None = None
    ) -> DownloadedObject:
        """Fetch an object into `path`: to a temporary file beside it, renamed once whole.

        Args:
            url: the object.
            path: the file to be; its folder exists.
            max_bytes: `ObjectTooLarge` above it.
            deadline_seconds: total time; the store's own default if None.

        Raises:
            ObjectMissing: there is none.
            StoreUnavailable: truncated, too slow, or broken off; nothing lies at `path`.
        """

    def head(self, url: ObjectUrl) -> ObjectHead | None:
        """What is known of the object, or None where there is none."""

    def delete(self, url: ObjectUrl) -> None:
        """Remove the object; it is no error if there is none."""

    def copy(self, source: ObjectUrl, target: ObjectUrl) -> None:
        """Copy inside the store. Raises `ObjectMissing` where there is no source."""

    def list(self, prefix: ObjectUrl) -> Iterator[ObjectUrl]:
        """Every object whose key begins with the prefix's, in the order of the keys."""

    def probe(self, prefix: ObjectUrl) -> StoreAbilities:
        """Try what this prefix can do; leaves nothing behind. Raises `StoreUnavailable`."""
