"""Fetch a job's pictures and their captions: in parallel, bounded, each failure named."""

import contextvars
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

#: Waits before the second, third, … try of a picture after a failure that may pass, seconds.
RETRY_WAITS_SECONDS = (0.5, 1.0, 2.0)

#: Longest time for one connection to be accepted, seconds.
CONNECT_SECONDS = 5.0

#: Bytes of a local file copied at a time.
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class FetchedImage:
    """A picture that is here.

    Attributes:
        index: its place in the message. url: as given there, without a query.
        path: the local file, named by the index: two keys may end in one basename.
        caption: the message's, else that of the `.txt` beside it, else None.
        bytes: size. sha256: hex digest.
    """

    index: int
    url: str
    path: Path
    caption: str | None
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageProblem:
    """A picture that could not be fetched.

    Attributes:
        index: its place in the message. url: as given there, without a query.
        reason: one clause for the sender, without a full stop; no secret, no path of ours.
        transient: whether it may succeed later without anybody changing it.
    """

    index: int
    url: str
    reason: str
    transient: bool


class _Unfetched(Exception):  # noqa: N818 - a finding about the picture
    """Why one picture could not be fetched: one clause to follow its address."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@dataclass(frozen=True)
class _Wanted:
    """One picture to fetch, and the file it is to become."""

    index: int
    url: str
    caption: str | None
    path: Path

    @property
    def shown_url(self) -> str:
        """The address without its query and user name, which may hold a signature or password."""
        if not self.url.lower().startswith("https:"):
            return self.url
        plain = self.url.partition("?")[0].partition("#")[0]
        scheme, _, rest = plain.partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"

    def fetched(self, size_bytes: int, sha256: str, caption: str | None) -> FetchedImage:
        return FetchedImage(self.index, self.shown_url, self.path, caption, size_bytes, sha256)

    def problem(self, reason: str, *, transient: bool) -> ImageProblem:
        return ImageProblem(self.index, self.shown_url, reason, transient)


class ImageFetcher:
    """Fetches from where the operator allows; holds no state of a job."""

    def __init__(
        self,
        *,
        s3: ObjectStore,
        gs_as_s3: bool,
        buckets: BucketList,
        https_hosts: Iterable[str],
        allow_files: bool,
        max_bytes: int,
        parallelism: int,
        deadline_seconds: float,
    ) -> None:
        """Keep the limits.

        Args:
            s3: where `s3://` addresses are read.
            gs_as_s3: read `gs://bucket/key` there too; refused otherwise.
            buckets: what of the store may be named.
            https_hosts: the only hosts that `https://` may name.
            allow_files: whether `file:///` is read.
            max_bytes: largest picture.
            parallelism: pictures fetched at a time.
            deadline_seconds: total time for one picture, retries and caption included.
        """
        self._s3, self._gs_as_s3, self._allow_files = s3, gs_as_s3, allow_files
        self._buckets, self._https_hosts = buckets, HostList(https_hosts)
        self._max_bytes, self._parallelism = max_bytes, parallelism
        self._deadline_seconds = deadline_seconds

    def fetch(
        self,
        images: Sequence[tuple[str, str | None]],
        folder: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[FetchedImage | ImageProblem]:
        """Fetch all of them; one outcome each, in the order given. Raises `OSError` of the disk.

        Args:
            images: address and caption (None: look for a `.txt` beside it).
            folder: where the files go, named `000000`, `000001`, …; it exists.
            should_stop: looked at before each picture and each retry; what is left then
                becomes a transient problem.
        """
        with ThreadPoolExecutor(self._parallelism, thread_name_prefix="images") as pool:
            futures = [
                # Each with the caller's context, so that log lines keep their job.
                pool.submit(
                    contextvars.copy_context().run,
                    self._fetch_one,
                    _Wanted(index, url, caption, folder / f"{index:06d}"),
                    should_stop,
                )
                for index, (url, caption) in enumerate(images)
            ]
            return [future.result() for future in futures]

    def _fetch_one(
        self, wanted: "_Wanted", should_stop: Callable[[], bool]
    ) -> FetchedImage | ImageProblem:
        deadline = time.monotonic() + self._deadline_seconds
        problem = wanted.problem("was not fetched before the worker stopped", transient=True)
        for wait_seconds in (*RETRY_WAITS_SECONDS, None):
            if should_stop():
                return problem
            try:
                return self._try(wanted, deadline)
            except _Unfetched as error:
                problem = wanted.problem(str(error), transient=error.transient)
            except StorageError as error:
                reason = _clause(error, self._max_bytes)
                problem = wanted.problem(reason, transient=error.transient)
            if not problem.transient or wait_seconds is None:
                break
            if time.monotonic() + wait_seconds >= deadline:
                break
            time.sleep(wait_seconds)
        return problem

    def _try(self, wanted: "_Wanted", deadline: float) -> FetchedImage:
        scheme = wanted.url.partition("://")[0].lower()
        if scheme in ("s3", "gs"):
            return self._from_store(wanted, self._object_url(wanted.url, scheme), deadline)
        if scheme == "https":
            return self._from_https(wanted, deadline)
        if scheme == "file":
            return self._from_file(wanted)
        raise _Unfetched("has a scheme that is not read here; use s3://")

    def _object_url(self, url: str, scheme: str) -> ObjectUrl:
        if scheme == "gs" and not self._gs_as_s3:
            raise _Unfetched("is a gs:// address, which needs an S3 endpoint here; use s3://")
        try:
            found = ObjectUrl.parse("s3" + url[len(scheme) :])
        except ValueError:
            raise _Unfetched("does not name a bucket and a key") from None
        if not found.key or found.key.endswith("/"):
            raise _Unfetched("does not name an object")
        if why := self._buckets.why_not(found):
            raise _Unfetched(why)
        return found

    def _from_store(self, wanted: "_Wanted", url: ObjectUrl, deadline: float) -> FetchedImage:
        got = self._s3.download(
            url, wanted.path, max_bytes=self._max_bytes, deadline_seconds=_left(deadline)
        )
        caption = wanted.caption
        if caption is None:
            caption = self._caption_object(ObjectUrl(url.bucket, caption_key(url.key)))
        return wanted.fetched(got.bytes, got.sha256, caption)

    def _caption_object(self, url: ObjectUrl) -> str | None:
        try:
            stored = self._s3.read(url, max_bytes=MAX_CAPTION_BYTES)
        except AccessDenied:
            # What S3 answers for an absent object to credentials that may not list.
            return None
        except ObjectTooLarge:
            raise _Unfetched(_LARGE_CAPTION) from None
        return None if stored is None else _caption(stored.body)

    def _from_https(self, wanted: "_Wanted", deadline: float) -> FetchedImage:
        try:
            address = parse_address(wanted.url)
        except ValueError as error:
            raise _Unfetched(f"is an address that {error}") from None
        if not self._https_hosts.allows(address.origin):
            raise _Unfetched("names a host that is not in IMAGE_ALLOWED_HOSTS")
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
                    raise _Unfetched(f"was answered with {answer.status}", transient=passing)
                size_bytes, digest = self._save(wanted.path, answer.chunks())
                announced = answer.headers.get("Content-Length")
        except RequestFailed as error:
            raise _Unfetched(f"could not be fetched: {error}", transient=True) from None
        if announced is not None and announced != str(size_bytes):
            raise _Unfetched("broke off", transient=True)
        return wanted.fetched(size_bytes, digest, wanted.caption)

    def _from_file(self, wanted: "_Wanted") -> FetchedImage:
        if not self._allow_files:
            raise _Unfetched("is a local file, which this worker does not read; use s3://")
        parts = urlsplit(wanted.url)
        if parts.netloc or parts.query or parts.fragment:
            raise _Unfetched("is not of the form file:///folder/name")
        source = unquote(parts.path)
        with _regular_file(source) as chunks:
            size_bytes, digest = self._save(wanted.path, chunks)
        caption = wanted.caption
        if caption is None:
            beside = caption_key(source)
            if os.path.isfile(beside):
                if os.path.getsize(beside) > MAX_CAPTION_BYTES:
                    raise _Unfetched(_LARGE_CAPTION)
                with _regular_file(beside) as chunks:
                    caption = _caption(b"".join(chunks))
        return wanted.fetched(size_bytes, digest, caption)

    def _save(self, path: Path, chunks: Iterator[bytes]) -> tuple[int, str]:
        digest, size_bytes = hashlib.sha256(), 0
        with path.open("wb") as file:
            for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > self._max_bytes:
                    raise _Unfetched(f"has more than {self._max_bytes} bytes")
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
        raise _Unfetched("has a .txt beside it that is not UTF-8") from None


@contextmanager
def _regular_file(path: str) -> Iterator[Iterator[bytes]]:
    """The chunks of a plain file; pipes, devices and folders are refused before they are read."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise _Unfetched("does not exist") from None
    except (OSError, ValueError):
        raise _Unfetched("cannot be read") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise _Unfetched("is not a plain file")
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
