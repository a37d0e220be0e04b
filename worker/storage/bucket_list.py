"""Which objects may a message name as pictures? Those of the operator's list, else all but ours."""

from collections.abc import Iterable

from worker.storage.keys import OWN_FOLDERS
from worker.storage.store import ObjectUrl


class BucketList:
    """The operator's `IMAGE_ALLOWED_BUCKETS`.

    An entry is `bucket`, or `bucket/folder/` for the keys that begin so. Without an entry every
    bucket is allowed that the credentials can read, but for the folders in which the worker itself
    keeps jobs and results: they are other people's.
    """

    def __init__(self, entries: Iterable[str], *, own_bucket: str) -> None:
        """Raises `ValueError` naming the entry that is not one."""
        self._allowed = tuple(map(_prefix, entries))
        self._own = tuple(ObjectUrl(own_bucket, folder) for folder in OWN_FOLDERS)

    def why_not(self, url: ObjectUrl) -> str | None:
        """Why `url` may not be read, as a clause to follow its address; None if it may."""
        if {".", ".."} & set(url.key.split("/")):
            # Literal to S3; a proxy before it may take it for another key, or another bucket.
            return "has . or .. in its key"
        if self._allowed:
            allowed = any(_covers(one, url) for one in self._allowed)
            return None if allowed else "is not in one of the buckets of IMAGE_ALLOWED_BUCKETS"
        if any(_covers(one, url) for one in self._own):
            return "lies among the worker's own files"
        return None


def _covers(prefix: ObjectUrl, url: ObjectUrl) -> bool:
    return url.bucket == prefix.bucket and url.key.startswith(prefix.key)


def _prefix(entry: str) -> ObjectUrl:
    try:
        found = ObjectUrl.parse(f"s3://{entry.removeprefix('s3://')}")
    except ValueError as error:
        raise ValueError(f"{entry!r} is not a bucket or bucket/folder/: {error}") from None
    if found.key and not found.key.endswith("/"):
        # `media/train` would allow `media/train-of-others/` too.
        raise ValueError(f"{entry!r} is not a bucket or bucket/folder/: it must end with /")
    return found
