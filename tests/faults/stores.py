"""Kind 5: the store answers wrongly, slowly, or not at all, in the middle of a job.

The workers reach the store through a proxy that spoils one request.
"""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, Scene, scene, wait
from tests.faults.seams import role
from tests.faults.tracing import publish_job
from tests.fixtures.servers import proxy_to, raw_answer
from worker.storage.store import ObjectUrl

_KIND = "store"

#: Which requests are spoiled: every kind of object that a job needs on its way.
_GETS = ("GET picture", "GET lease")
_PUTS = ("PUT lease", "PUT checkpoint-file", "PUT output-file", "PUT result")


@dataclass(frozen=True)
class Trouble:
    """What happens to requests for one kind of object.

    Attributes:
        request: method and role, such as `PUT result`.
        how: see `_TROUBLES`.
        times: to so many of them; each try of the store's client is one.
    """

    request: str
    how: str
    times: int = 1


def cases() -> Iterator[Case]:
    for how in ("503", "reset", "reset after", "drip", "truncated"):
        for request in _GETS:
            yield _case(Trouble(request, how))
    for how in ("503", "reset", "reset after", "hang", "flipped on the way"):
        for request in _PUTS:
            yield _case(Trouble(request, how))
    for request in _PUTS:
        # More often than the client tries, and then it is over.
        yield _case(Trouble(request, "503", times=9))
    yield _case(Trouble("PUT checkpoint-file", "403"))
    yield Case(_KIND, "403 on the pictures for good", _forbidden_pictures)
    yield Case(_KIND, "a flipped byte in a stored checkpoint", _flipped_checkpoint)
    yield Case(_KIND, "down for five seconds in the middle of a job", _down)


def _case(trouble: Trouble) -> Case:
    often = "" if trouble.times == 1 else f", {trouble.times} times"
    return Case(_KIND, f"{trouble.how}: {trouble.request}{often}", partial(_play, trouble=trouble))


def _play(lab: Lab, trouble: Trouble) -> Counts:
    spoiler = Spoiler(trouble)
    with _through(lab, spoiler, S3_TIMEOUT_SECONDS="1") as played:
        publish_job(played)
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, spoiler.spoiled == trouble.times, f"spoiled {spoiler.spoiled} times")
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts


@contextmanager
def _through(lab: Lab, spoiler: "Spoiler", **settings: str) -> Iterator[Scene]:
    """A scene whose workers reach the store through the spoiler."""
    with (
        proxy_to(lab.s3.endpoint_url, spoiler.answer, meet=spoiler.meet) as url,
        scene(lab, store_url=url, **settings) as played,
    ):
        yield played


class Spoiler:
    """Spoils the first requests of a kind, on their way to the store or on the way back."""

    def __init__(self, trouble: Trouble) -> None:
        self._trouble, self._lock = trouble, threading.Lock()
        self._spoil_answer = threading.local()
        self.spoiled = 0

    def meet(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes | None:
        """What is answered without asking the store; None asks it."""
        self._spoil_answer.how = None
        if f"{method} {_role(path)}" != self._trouble.request or not self._take():
            return None
        match self._trouble.how:
            case "503":
                return raw_answer(503, [], _ERROR.replace(b"CODE", b"SlowDown"))
            case "403":
                return raw_answer(403, [], _ERROR.replace(b"CODE", b"AccessDenied"))
            case "reset":
                return b""
            case "hang":
                time.sleep(3)
                return b""
            case "flipped on the way":
                return _digest_answer(headers, bytes([body[0] ^ 1]) + body[1:])
        self._spoil_answer.how = self._trouble.how
        return None

    def answer(
        self, method: str, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> bytes | None:
        """What is sent instead of the store's answer; None sends that."""
        match self._spoil_answer.how:
            case "reset after":
                return b""
            case "truncated":
                return raw_answer(status, headers, body)[: -max(1, len(body) // 2)]
            case "drip":
                time.sleep(3)
                return raw_answer(status, headers, body)
        return None

    def _take(self) -> bool:
        with self._lock:
            if self.spoiled >= self._trouble.times:
                return False
            self.spoiled += 1
            return True


_ERROR = b"<?xml version='1.0'?><Error><Code>CODE</Code><Message>on purpose</Message></Error>"


def _role(path: str) -> str:
    key = path.partition("?")[0].lstrip("/").partition("/")[2]
    return role(ObjectUrl("any", key))


def _digest_answer(headers: Mapping[str, str], body: bytes) -> bytes | None:
    """What Amazon's S3 answers to a body that is not as its header says. (moto looks at none.)"""
    declared = {
        headers.get("x-amz-checksum-sha256"): base64.b64encode(hashlib.sha256(body).digest()),
        headers.get("Content-MD5"): base64.b64encode(hashlib.md5(body).digest()),
    }
    declared.pop(None, None)
    if all(said == found.decode() for said, found in declared.items()):
        return None
    return raw_answer(400, [], _ERROR.replace(b"CODE", b"BadDigest"))


def _forbidden_pictures(lab: Lab) -> Counts:
    spoiler = Spoiler(Trouble("GET picture", "403", times=10**6))
    with _through(lab, spoiler) as played:
        publish_job(played)
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.failed == 1, "the job did not fail")
        end = next(one for one in played.arrivals if one.terminal)
        expect(counts, b"IMAGE_DOWNLOAD_FAILED" in end.body, f"it ended with {end.body!r}")
        return counts


def _flipped_checkpoint(lab: Lab) -> Counts:
    """A damaged checkpoint is noticed and not used."""
    fault = Fault("supervisor", "kill", "before", "store.upload output-file")
    with scene(lab) as played:
        publish_job(played)
        played.strike(fault).wait()
        client = played.site.client
        for key, body in played.site.objects("jobs/").items():
            if "/checkpoints/" in key:
                damaged = bytes([body[0] ^ 1]) + body[1:]
                client.put_object(Bucket=played.site.results, Key=key, Body=damaged)
        second = played.start()
        second.wait_for_log("checkpoint_damaged")
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts


def _down(lab: Lab) -> Counts:
    """The owner trains on while the store cannot be reached, and stores all when it is back."""
    closed = threading.Event()

    def meet(*_: object) -> bytes | None:
        return b"" if closed.is_set() else None

    with (
        proxy_to(lab.s3.endpoint_url, meet=meet) as through,
        scene(lab, store_url=through, STEP_SECONDS="0.05") as played,
    ):
        played.publish(parameters={"max_train_steps": 60})
        worker = played.start()
        worker.wait_for_log("checkpoint_stored")
        closed.set()
        wait(5)
        closed.clear()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 1, "the job is not completed")
        return counts
