"""The supervisor's side effects, each with a name: everything it does outside of its memory.

They go through four classes: the store, the publisher, the consumer, the webhook client.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

from tests.faults.failpoints import Failpoints
from worker.broker.confirms import PublishFailed
from worker.broker.consumer import Consumer
from worker.broker.publisher import Publisher
from worker.storage.s3 import S3Store
from worker.storage.store import ObjectUrl, StoreUnavailable
from worker.webhooks.client import Answer, WebhookClient

#: What lies where in the bucket, for the names of points.
_ROLES = (
    (r"jobs/\.probe-.*", "probe"),
    (r"jobs/[^/]+/(\w+)\.json", r"\1"),
    (r"jobs/[^/]+/checkpoints/.*", "checkpoint-file"),
    (r"jobs/[^/]+/output/.*", "output-file"),
    (r"models/[^/]+/current\.json", "current"),
    (r"models/[^/]+/jobs/.*", "immutable-copy"),
    (r"models/.*", "stable-copy"),
    (r".*\.txt", "caption"),
)


def install(points: Failpoints) -> None:
    """Lead every side effect of this process through `points`."""
    for method in ("read", "write", "upload", "download", "head", "delete"):
        _wrap(points, S3Store, method, _store_point(method), _store_fails)
    _wrap(points, S3Store, "copy", lambda source, target: _named("copy", target), _store_fails)
    _wrap(points, Publisher, "publish", _publish_point, _publish_fails)
    for method in ("ack", "requeue"):
        _wrap(points, Consumer, method, _settle_point(method), lambda point: False)
    _wrap(points, WebhookClient, "send", _webhook_point, _webhook_fails)


def role(url: ObjectUrl) -> str:
    """What an object is to a job: lease, result, output-file, …; `picture` for all else."""
    for pattern, name in _ROLES:
        if found := re.fullmatch(pattern, url.key):
            return found.expand(name)
    return "picture"


def _wrap(
    points: Failpoints,
    owner: type,
    method: str,
    name: Callable[..., str],
    failed: Callable[[str], Any],
) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        point = name(*args, **kwargs)
        return points.around(point, lambda: original(self, *args, **kwargs), lambda: failed(point))

    setattr(owner, method, wrapped)


def _named(method: str, url: ObjectUrl) -> str:
    return f"store.{method} {role(url)}"


def _store_point(method: str) -> Callable[..., str]:
    return lambda url, *args, **kwargs: _named(method, url)


def _publish_point(queue: str, body: bytes, **kwargs: Any) -> str:
    # Queues are named after the main one, whatever that is called.
    found = re.search(r"\.(parked|resume|dead|control|events\.dead|events)$", queue)
    if found:
        return f"publish {found[1]}"
    return "publish events.retry" if ".events.retry." in queue else "publish retry"


def _settle_point(method: str) -> Callable[..., str]:
    def name(delivery: Any) -> str:
        kind = "event" if ".events" in delivery.queue else "job"
        return f"{method} {'control' if '.control.' in delivery.queue else kind}"

    return name


def _webhook_point(method: str, base: str, path: str, *args: Any, **kwargs: Any) -> str:
    return f"webhook {path.rpartition('/')[2]}"


def _store_fails(point: str) -> Any:
    raise StoreUnavailable(f"{point} fails on purpose.")


def _publish_fails(point: str) -> Any:
    raise PublishFailed(f"{point} fails on purpose")


def _webhook_fails(point: str) -> Answer:
    return Answer("retry", None, None, "the receiver is away on purpose")
