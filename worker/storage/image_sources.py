"""Where may a picture come from? The store, allowed HTTPS hosts, local files: one try, bounded."""

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.outbound.address import HostList, parse_address
from worker.outbound.request import RequestFailed, request
from worker.storage.bucket_list import BucketList
from worker.storage.store import (
    AccessDenied,
    BucketMissing,
    ObjectMissing,
    ObjectStore,
    ObjectTooLarge,
    ObjectUrl,
    StorageError,
)

#: Largest caption file, bytes.
MAX_CAPTION_BYTES = 16 * 1024

_LARGE_CAPTION = f"has a .txt beside it of more than {MAX_CAPTION_BYTES} bytes"

#: Longest time for one connection to be accepted, seconds.
CONNECT_SECONDS = 5.0

#: Bytes of a local file copied at a time.
CHUNK_BYTES = 1024 * 1024


class Unfetched(Exception):  # noqa: N818 - a finding about the picture
    """Why one picture could not be fetched: one clause to follow its address."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@dataclass(frozen=True)
class FetchedFile:
    """What lies in the file now: its size, its hex digest, and the picture's caption if any."""

    bytes: int
    sha256: str
    caption: str | None


class ImageSources:
    """What the operator allows pictures to be read from."""

    def __init__(
        self,
        *,
        s3: ObjectStore,
        gs_as_s3: bool,
        buckets: BucketList,
        https_hosts: Iterable[str],
        allow_files: bool,
        max_bytes: int,
    ) -> None:
        """Keep the limits.

        Args:
            s3: where `s3://` addresses are read.
            gs_as_s3: read `gs://bucket/key` there too; refused otherwise.
            buckets: what of the store may be named.
            https_hosts: the only hosts that `https://` may name.
            allow_files: whether `file:///` is read.
            max_bytes: largest picture.
        """
        self._s3, self._gs_as_s3, self._allow_files = s3, gs_as_s3, allow_files
        self._buckets, self._https_hosts = buckets, HostList(https_hosts)
        self._max_bytes = max_bytes

    def fetch(self, url: str, path: Path, caption: str | None, deadline: float) -> FetchedFile:
        """Write what lies at `url` to `path`, in one try.

        Args:
            url: as the message names it.
            path: the file that it becomes.
            caption: the message's; if None, that of the `.txt` beside the picture.
            deadline: when it must be here, by the monotonic clock.

        Raises:
            Unfetched: it is not allowed, not there or not whole.
        """
        scheme = url.partition("://")[0].lower()
        if scheme in ("s3", "gs"):
            found = self._object_url(url, scheme)
            try:
                return self._from_store(found, path, caption, deadline)
            except StorageError as error:
                why = _clause(error, self._max_bytes)
                raise Unfetched(why, transient=error.transient) from None
        if scheme == "https":
            return self._from_https(url, path, caption, deadline)
        if scheme == "file":
            return self._from_file(url, path, caption)
        raise Unfetched("has a scheme that is not read here; use s3://")

    def _object_url(self, url: str, scheme: str) -> ObjectUrl:
        if scheme == "gs" and not self._gs_as_s3:
            raise Unfetched("is a gs:// address, which needs an S3 endpoint here; use s3://")
        try:
            found = ObjectUrl.parse("s3" + url[len(scheme) :])
        except ValueError:
            raise Unfetched("does not name a bucket and a key") from None
        if not found.key or found.key.endswith("/"):
            raise Unfetched("does not name an object")
        if why := self._buckets.why_not(found):
            raise Unfetched(why)
        return found

    def _from_store(
        self, url: ObjectUrl, path: Path, caption: str | None, deadline: float
    ) -> FetchedFile:
        got = self._s3.download(
            url, path, max_bytes=self._max_bytes, deadline_seconds=_left(deadline)
        )
        if caption is None:
            caption = self._caption_object(ObjectUrl(url.bucket, caption_key(url.key)))
        return FetchedFile(got.bytes, got.sha256, caption)

    def _caption_object(self, url: ObjectUrl) -> str | None:
        try:
            stored = self._s3.read(url, max_bytes=MAX_CAPTION_BYTES)
        except AccessDenied:
            # What S3 answers for an absent object to credentials that may not list.
            return None
        except ObjectTooLarge:
            raise Unfetched(_LARGE_CAPTION) from None
        return None if stored is None else _caption(stored.body)

    def _from_https(
        self, url: str, path: Path, caption: str | None, deadline: float
    ) -> FetchedFile:
        try:
            address = parse_address(url)
        except ValueError as error:
            raise Unfetched(f"is an address that {error}") from None
        if not self._https_hosts.allows(address.origin):
            raise Unfetched("names a host that is not in IMAGE_ALLOWED_HOSTS")
        try:
            with request(
                "GET",
                address,
                headers={"Accept": "image/*"},
                connect_timeout_seconds=CONNECT_SECONDS,
                deadline_seconds=_left(deadline),
            ) as answer:
                if answer.status != 200:
                    passing = answer.status >= 500 or answer.status in (408, 425, 429)
                    raise Unfetched(f"was answered with {answer.status}", transient=passing)
                size_bytes, digest = self._save(path, answer.chunks())
                announced = answer.headers.get("Content-Length")
        except RequestFailed as error:
            raise Unfetched(f"could not be fetched: {error}", transient=True) from None
        if announced is not None and announced != str(size_bytes):
            raise Unfetched("broke off", transient=True)
        return FetchedFile(size_bytes, digest, caption)

    def _from_file(self, url: str, path: Path, caption: str | None) -> FetchedFile:
        if not self._allow_files:
            raise Unfetched("is a local file, which this worker does not read; use s3://")
        parts = urlsplit(url)
        if parts.netloc or parts.query or parts.fragment:
            raise Unfetched("is not of the form file:///folder/name")
        source = unquote(parts.path)
        with _regular_file(source) as chunks:
            size_bytes, digest = self._save(path, chunks)
        if caption is None:
            beside = caption_key(source)
            if os.path.isfile(beside):
                if os.path.getsize(beside) > MAX_CAPTION_BYTES:
                    raise Unfetched(_LARGE_CAPTION)
                with _regular_file(beside) as chunks:
                    caption = _caption(b"".join(chunks))
        return FetchedFile(size_bytes, digest, caption)

    def _save(self, path: Path, chunks: Iterator[bytes]) -> tuple[int, str]:
        digest, size_bytes = hashlib.sha256(), 0
        with path.open("wb") as file:
            for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > self._max_bytes:
                    raise Unfetched(f"has more than {self._max_bytes} bytes")
                digest.update(chunk)
                file.write(chunk)
        return size_bytes, digest.hexdigest()


def caption_key(key: str) -> str:
    """The key (or path) with its suffix replaced by `.txt`: `a/b.jpg` to `a/b.txt`."""
    folder, slash, name = key.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return f"{folder}{slash}{stem}.txt"


def _caption(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Unfetched("has a .txt beside it that is not UTF-8") from None


@contextmanager
def _regular_file(path: str) -> Iterator[Iterator[bytes]]:
    """The chunks of a plain file; pipes, devices and folders are refused before they are read."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Unfetched("does not exist") from None
    except (OSError, ValueError):
        raise Unfetched("cannot be read") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Unfetched("is not a plain file")
    with os.fdopen(number, "rb") as file:
        yield iter(lambda: file.read(CHUNK_BYTES), b"")


def _clause(error: StorageError, max_bytes: int) -> str:
    """What is wrong, to follow the address, which the store's own sentence repeats."""
    if isinstance(error, ObjectMissing):
        return "does not exist"
    if isinstance(error, BucketMissing):
        return "names a bucket that does not exist"
    if isinstance(error, AccessDenied):
        return "may not be read with the worker's credentials"
    if isinstance(error, ObjectTooLarge):
        return f"has more than {max_bytes} bytes"
    if error.transient:
        return "could not be fetched: the store is not reached, too slow, or broke off"
    return "could not be read from the store"


def _left(deadline: float) -> float:
    """Seconds until a monotonic deadline, a little above 0 at least."""
    return max(0.001, deadline - time.monotonic())
