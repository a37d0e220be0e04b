"""Does this store enforce conditional writes? Some answer 200 and ignore them, so: try."""

import hashlib
import tempfile
import uuid
from pathlib import Path

import structlog

from worker.storage.store import (
    AccessDenied,
    BucketMissing,
    ObjectStore,
    ObjectUrl,
    PreconditionFailed,
    StorageError,
    StoreAbilities,
    StoreUnavailable,
)

_log = structlog.get_logger()


def probe_prefix(store: ObjectStore, prefix: ObjectUrl) -> StoreAbilities:
    """Write, rewrite and delete an object of its own below `prefix`.

    Raises:
        StoreUnavailable: nothing is known, try again.
    """
    url = prefix.child(f".probe-{uuid.uuid4().hex}")
    try:
        first_etag = store.write(url, b"1", content_type="text/plain")
    except BucketMissing:
        reason = f"The bucket {prefix.bucket} does not exist."
        return StoreAbilities(writable=False, conditional_put=False, reason=reason)
    except AccessDenied:
        reason = f"The store refuses to write below {prefix} with these credentials."
        return StoreAbilities(writable=False, conditional_put=False, reason=reason)
    try:
        ignored = _ignored_condition(store, url, first_etag)
        refused = _refused_upload(store, url)
    finally:
        try:
            store.delete(url)
        except StorageError as error:
            _log.warning("probe_object_left", url=str(url), reason=error.message)
    if refused:
        return StoreAbilities(writable=False, conditional_put=not ignored, reason=refused)
    return StoreAbilities(writable=True, conditional_put=not ignored, reason=ignored)


def _refused_upload(store: ObjectStore, url: ObjectUrl) -> str:
    """One sentence where files cannot be stored as those of an adapter are; else empty."""
    content = b"4"
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            store.upload(
                url,
                Path(file.name),
                content_type="text/plain",
                sha256_hex=hashlib.sha256(content).hexdigest(),
            )
        except StoreUnavailable:
            raise
        except StorageError as error:
            return f"The store takes no file in the way that adapters are uploaded: {error.message}"
    return ""


def _ignored_condition(store: ObjectStore, url: ObjectUrl, first_etag: str) -> str:
    """One sentence about a condition that is not enforced, or empty if all are."""
    if not _refused(store, url, only_if_absent=True):
        return "The store overwrites an object in spite of If-None-Match."
    try:
        second_etag = store.write(url, b"2", content_type="text/plain", only_if_etag=first_etag)
    except StoreUnavailable:
        raise
    except StorageError:
        return "The store refuses a write whose If-Match is right."
    if not _refused(store, url, only_if_etag=first_etag):
        return "The store overwrites an object in spite of If-Match."
    if second_etag == first_etag:
        return "The store gives another content the same etag."
    return ""


def _refused(
    store: ObjectStore,
    url: ObjectUrl,
    *,
    only_if_absent: bool = False,
    only_if_etag: str | None = None,
) -> bool:
    try:
        store.write(
            url,
            b"3",
            content_type="text/plain",
            only_if_absent=only_if_absent,
            only_if_etag=only_if_etag,
        )
    except PreconditionFailed:
        return True
    except StoreUnavailable:
        raise
    except StorageError:
        # 501 and the like: such writes cannot be used at all.
        return False
    return False
