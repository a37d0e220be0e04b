"""The object store's twin on local files, for training and tests without any server."""

import fcntl
import hashlib
import mimetypes
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import IO

from worker.storage.probe import probe_prefix
from worker.storage.store import (
    MAX_READ_BYTES,
    AccessDenied,
    BucketMissing,
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

#: Bytes copied at a time.
CHUNK_BYTES = 1024 * 1024


class LocalStore:
    """`ObjectStore` on the folder `root`: an object is the file `root/bucket/key`.

    Writes are atomic (temporary file, fsync, rename) and take a lock that other processes on this
    machine respect, so conditional writes hold between workers too. The etag is the content's
    digest. Two things S3 can do and a file system cannot: an object `a` beside an object `a/b`,
    and keys with `..` in them; both raise `StorageError`.
    """

    def __init__(self, root: Path, *, buckets: Iterable[str] | None = None) -> None:
        """Open the store, making the folder if need be.

        Args:
            root: the folder.
            buckets: the only buckets there are; if None, each one comes into being when named.
        """
        self._root = root
        self._incoming = root / ".incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._buckets = None if buckets is None else frozenset(buckets)

    def read(self, url: ObjectUrl, *, max_bytes: int = MAX_READ_BYTES) -> StoredObject | None:
        """As `ObjectStore.read`."""
        try:
            with self._open(url) as file:
                status = os.fstat(file.fileno())
                _check_size(url, status.st_size, max_bytes)
                body = file.read()
        except ObjectMissing:
            return None
        return StoredObject(body, _etag(body), _time(status.st_mtime), _time(time.time()))

    def write(
        self,
        url: ObjectUrl,
        body: bytes,
        *,
        content_type: str,
        only_if_absent: bool = False,
        only_if_etag: str | None = None,
    ) -> str:
        """As `ObjectStore.write`; the content type is told by the key's suffix instead."""
        path = self._path(url)
        with self._incoming_file() as (temporary, file):
            file.write(body)
            _flush(file)
            with self._lock():
                conditional = only_if_absent or only_if_etag is not None
                standing = self.head(url) if conditional else None
                if only_if_absent and standing is not None:
                    raise PreconditionFailed(f"{url} is there already.")
                if only_if_etag is not None and (standing is None or standing.etag != only_if_etag):
                    raise PreconditionFailed(f"{url} is not as the conditional write demanded.")
                _put(temporary, path, url)
        return _etag(body)

    def upload(
        self, url: ObjectUrl, path: Path, *, content_type: str, sha256_hex: str | None = None
    ) -> None:
        """As `ObjectStore.upload`; `sha256_hex` is checked at once instead of noted."""
        target = self._path(url)
        with path.open("rb") as source, self._incoming_file() as (temporary, file):
            size_bytes, digest = _copy(source, file)
            _flush(file)
            if sha256_hex not in (None, digest) or size_bytes != path.stat().st_size:
                raise StoreUnavailable(f"The file for {url} changed while it was stored.")
            with self._lock():
                _put(temporary, target, url)

    def download(
        self, url: ObjectUrl, path: Path, *, max_bytes: int, deadline_seconds: float | None = None
    ) -> DownloadedObject:
        """As `ObjectStore.download`; a local copy needs no deadline."""
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            with self._open(url) as source, temporary.open("xb") as file:
                _check_size(url, os.fstat(source.fileno()).st_size, max_bytes)
                size_bytes, digest = _copy(source, file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return DownloadedObject(size_bytes, digest, _content_type(url))

    def head(self, url: ObjectUrl) -> ObjectHead | None:
        """As `ObjectStore.head`; reads the file, for its digest."""
        try:
            with self._open(url) as file:
                status = os.fstat(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except ObjectMissing:
            return None
        return ObjectHead(
            bytes=status.st_size,
            etag=f'"{digest}"',
            content_type=_content_type(url),
            last_modified=_time(status.st_mtime),
            server_time=_time(time.time()),
            sha256=digest,
        )

    def delete(self, url: ObjectUrl) -> None:
        """As `ObjectStore.delete`; folders left empty go too."""
        path = self._path(url)
        with self._lock():
            try:
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self._root / url.bucket:
                        break
                    folder.rmdir()
            except OSError:
                return  # a folder in use, or no file of that name: nothing more to remove

    def copy(self, source: ObjectUrl, target: ObjectUrl) -> None:
        """As `ObjectStore.copy`."""
        path = self._path(target)
        with self._open(source) as file, self._incoming_file() as (temporary, copy):
            _copy(file, copy)
            _flush(copy)
            with self._lock():
                _put(temporary, path, target)

    def list(self, prefix: ObjectUrl) -> Iterator[ObjectUrl]:
        """As `ObjectStore.list`."""
        bucket = self._bucket(prefix)
        files = (file for file in bucket.rglob("*") if file.is_file())
        keys = sorted(file.relative_to(bucket).as_posix() for file in files)
        yield from (ObjectUrl(prefix.bucket, key) for key in keys if key.startswith(prefix.key))

    def probe(self, prefix: ObjectUrl) -> StoreAbilities:
        """As `ObjectStore.probe`."""
        return probe_prefix(self, prefix)

    def path_of(self, url: ObjectUrl) -> Path:
        """Where an object's file lies, for a person to open. It need not exist."""
        return self._path(url)

    def _bucket(self, url: ObjectUrl) -> Path:
        listed = self._buckets is None or url.bucket in self._buckets
        if not listed or not url.bucket[:1].isalnum() or "/" in url.bucket:
            raise BucketMissing(f"The bucket of {url} does not exist.")
        return self._root / url.bucket

    def _path(self, url: ObjectUrl) -> Path:
        parts = url.key.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise StorageError(f"{url} cannot be stored as a local file.")
        return self._bucket(url).joinpath(*parts)

    def _open(self, url: ObjectUrl) -> BufferedReader:
        try:
            return self._path(url).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectMissing(f"{url} does not exist.") from None
        except PermissionError:
            raise AccessDenied(f"The file of {url} may not be read.") from None

    @contextmanager
    def _incoming_file(self) -> Iterator[tuple[Path, IO[bytes]]]:
        temporary = self._incoming / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                yield temporary, file
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self._root / ".lock").open("ab") as file:
            # The lock belongs to this opening of the file: it holds between threads as well.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _put(temporary: Path, path: Path, url: ObjectUrl) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise StorageError(f"{url} lies under or over another object.") from None
    except PermissionError:
        raise AccessDenied(f"The folder of {url} may not be written.") from None


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    """Copy all bytes; returns how many and their hex digest."""
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
        size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_size(url: ObjectUrl, size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise ObjectTooLarge(f"{url} has {size_bytes} bytes; at most {max_bytes} are taken.")


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _content_type(url: ObjectUrl) -> str:
    return mimetypes.guess_type(url.key)[0] or "application/octet-stream"
