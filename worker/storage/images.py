"""Fetch a job's pictures and their captions: in parallel, tried again, each failure named."""

import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from worker.storage.image_sources import FetchedFile, ImageSources, Unfetched

#: Waits before the second, third, … try of a picture after a failure that may pass, seconds.
RETRY_WAITS_SECONDS = (0.5, 1.0, 2.0)


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

    def fetched(self, file: FetchedFile) -> FetchedImage:
        return FetchedImage(
            self.index, self.shown_url, self.path, file.caption, file.bytes, file.sha256
        )

    def problem(self, reason: str, *, transient: bool) -> ImageProblem:
        return ImageProblem(self.index, self.shown_url, reason, transient)


class ImageFetcher:
    """Fetches from where the operator allows; holds no state of a job."""

    def __init__(self, sources: ImageSources, *, parallelism: int, deadline_seconds: float) -> None:
        """Keep the limits.

        Args:
            sources: where pictures may come from.
            parallelism: pictures fetched at a time.
            deadline_seconds: total time for one picture, retries and caption included.
        """
        self._sources = sources
        self._parallelism, self._deadline_seconds = parallelism, deadline_seconds

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
        self, wanted: _Wanted, should_stop: Callable[[], bool]
    ) -> FetchedImage | ImageProblem:
        deadline = time.monotonic() + self._deadline_seconds
        problem = wanted.problem("was not fetched before the worker stopped", transient=True)
        for wait_seconds in (*RETRY_WAITS_SECONDS, None):
            if should_stop():
                return problem
            try:
                return wanted.fetched(
                    self._sources.fetch(wanted.url, wanted.path, wanted.caption, deadline)
                )
            except Unfetched as error:
                problem = wanted.problem(str(error), transient=error.transient)
            if not problem.transient or wait_seconds is None:
                break
            if time.monotonic() + wait_seconds >= deadline:
                break
            time.sleep(wait_seconds)
        return problem
