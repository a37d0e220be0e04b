"""What became of every job? A pure function over three journals: published, stored, received."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Published:
    """A message that the broker has confirmed.

    Attributes:
        refused: it breaks the contract, or its id belongs to another content: it must end in the
            dead-letter queue and change nothing else.
    """

    job_id: str
    refused: bool = False


@dataclass(frozen=True)
class Stored:
    """What lies in the bucket and in the two dead-letter queues at the end.

    Attributes:
        objects: body of every object by its key.
        dead: headers and body of every dead job. dead_events: of every event that was given up.
        waiting: messages in all other queues.
    """

    objects: Mapping[str, bytes]
    dead: Sequence[tuple[Mapping[str, Any], bytes]] = ()
    dead_events: Sequence[tuple[Mapping[str, Any], bytes]] = ()
    waiting: int = 0


@dataclass(frozen=True)
class Arrival:
    """A webhook as it came to its receiver, in the order of arrival.

    Attributes:
        status: what the receiver answered.
        key: the `Idempotency-Key`.
    """

    job_id: str
    event: str
    key: str
    body: bytes
    status: int

    @property
    def terminal(self) -> bool:
        """Whether it says how the job ended."""
        return self.event != "progress"

    @property
    def accepted(self) -> bool:
        """Whether the receiver took it."""
        return 200 <= self.status < 300


@dataclass
class Counts:
    """The table of a campaign; everything from `lost` to `waiting` must be zero.

    Attributes:
        published: confirmed messages, the copies of one job counted each.
        committed: jobs with an adapter. failed: jobs and messages that were refused, failed or
            canceled.
        lost: without an end, without what belongs to it, or an end that nobody was told of.
        duplicated: second results or adapters, jobs that nobody sent.
        contradicting: two different ends, or one that was told otherwise than it is.
        progress_after_terminal, progress_backwards: reports that should not have been sent.
        leaked: places that show a secret.
        inexact: adapters that are not bit for bit those of an undisturbed job (real trainer only).
        waiting: messages left over in queues.
        terminal_seen_twice: accepted a second time, same key, same bytes: the allowed window.
        steps_redone: training steps that were done more than once.
    """

    published: int = 0
    committed: int = 0
    failed: int = 0
    lost: int = 0
    duplicated: int = 0
    contradicting: int = 0
    progress_after_terminal: int = 0
    progress_backwards: int = 0
    leaked: int = 0
    inexact: int = 0
    waiting: int = 0
    terminal_seen_twice: int = 0
    steps_redone: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """No promise was broken."""
        return not self.findings

    def blame(self, count: str, finding: str) -> None:
        """Count a broken promise and keep the sentence."""
        setattr(self, count, getattr(self, count) + 1)
        self.findings.append(f"{count}: {finding}")

    def add(self, other: "Counts") -> None:
        """Sum up."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def check(
    published: Sequence[Published],
    stored: Stored,
    received: Sequence[Arrival],
    *,
    steps: Iterable[tuple[str, int]] = (),
) -> Counts:
    """Compare what was sent with what became of it.

    Args:
        published: every confirmed message.
        stored: the bucket and the dead letters.
        received: every webhook, in order.
        steps: job and number of every training step that was made.
    """
    counts = Counts(published=len(published))
    accepted = {one.job_id for one in published if not one.refused}
    for job_id in sorted(accepted):
        _check_job(job_id, stored, [one for one in received if one.job_id == job_id], counts)
    _check_refused([one.job_id for one in published if one.refused], stored, counts)
    for key in stored.objects:
        job_id = key.split("/")[1]
        known = accepted | {one.job_id for one in published}
        if key.startswith("jobs/") and key.endswith("/result.json") and job_id not in known:
            counts.blame("duplicated", f"{job_id} ended and nobody had sent it")
    _check_stable_adapters(stored, counts)
    if stored.waiting:
        counts.waiting = stored.waiting
        counts.findings.append(f"waiting: {stored.waiting} messages are left in the queues")
    made = Counter(steps)
    counts.steps_redone = made.total() - len(made)
    return counts


def _check_job(job_id: str, stored: Stored, received: Sequence[Arrival], counts: Counts) -> None:
    result = _json(stored.objects.get(f"jobs/{job_id}/result.json"))
    dead = [headers for headers, _ in stored.dead if headers.get("x-lora-job-id") == job_id]
    dead = [headers for headers in dead if headers.get("x-lora-code") != "INVALID_JOB"]
    if result is None:
        counts.blame("lost", f"{job_id} has no result")
        return
    if result["outcome"] == "completed":
        counts.committed += 1
        _check_adapter(job_id, result, stored, counts)
        if dead:
            counts.blame("contradicting", f"{job_id} is completed and dead")
    else:
        counts.failed += 1
        if result["outcome"] == "failed" and not dead:
            invalid = result["fingerprint"].startswith("invalid-")
            if not (invalid and _dead_copies(job_id, stored)):
                counts.blame("lost", f"{job_id} failed and is not in the dead-letter queue")
    _check_told(job_id, result, stored, received, counts)
    _check_progress(job_id, received, counts)


def _check_adapter(job_id: str, result: dict[str, Any], stored: Stored, counts: Counts) -> None:
    digests = json.loads(result["event_body"])["metadata"]["files"]
    for name in result["files"]:
        body = stored.objects.get(f"models/style_{result['style_id']}/jobs/{job_id}/{name}")
        if body is None:
            counts.blame("lost", f"{job_id} is completed and its file {name} is missing")
        elif hashlib.sha256(body).hexdigest() != digests[name]:
            counts.blame("duplicated", f"the file {name} of {job_id} is of another attempt")


def _check_stable_adapters(stored: Stored, counts: Counts) -> None:
    """The stable files of a style are those of the job that `current.json` names."""
    for key, body in stored.objects.items():
        if not (key.startswith("models/") and key.endswith("/current.json")):
            continue
        style, current = key.removesuffix("current.json"), json.loads(body)
        for name in current["files"]:
            own = stored.objects.get(f"{style}jobs/{current['job_id']}/{name}")
            if own is None or stored.objects.get(style + name) != own:
                counts.blame("lost", f"{style}{name} is not of {current['job_id']}")


def _check_told(
    job_id: str,
    result: dict[str, Any],
    stored: Stored,
    received: Sequence[Arrival],
    counts: Counts,
) -> None:
    ends = [one for one in received if one.terminal]
    for one in {(one.event, one.key, one.body): one for one in ends}.values():
        expected = (result["event"], f"{job_id}:{result['event']}", result["event_body"].encode())
        if (one.event, one.key, one.body) != expected:
            counts.blame("contradicting", f"{job_id} is told {one.event} with key {one.key}")
    told = sum(one.accepted for one in ends)
    given_up = [body for _, body in stored.dead_events if _json(body)["job_id"] == job_id]
    if result["webhook_base"] and not told and not given_up:
        counts.blame("lost", f"nobody was told how {job_id} ended")
    if told > 1:
        counts.terminal_seen_twice += told - 1


def _check_progress(job_id: str, received: Sequence[Arrival], counts: Counts) -> None:
    highest, ended = 0, False
    for one in received:
        if one.terminal:
            ended = True
            continue
        percent = json.loads(one.body)["progress"]["progress_percent"]
        if ended:
            counts.blame("progress_after_terminal", f"{job_id} reports {percent} % after its end")
        if percent < highest:
            counts.blame("progress_backwards", f"{job_id} goes from {highest} % to {percent} %")
        highest = max(highest, percent)


def _check_refused(job_ids: Sequence[str], stored: Stored, counts: Counts) -> None:
    for job_id, sent in Counter(job_ids).items():
        counts.failed += sent
        if _dead_copies(job_id, stored) < sent:
            counts.blame("lost", f"a refused message of {job_id} is not in the dead-letter queue")


def _dead_copies(job_id: str, stored: Stored) -> int:
    return sum(
        headers.get("x-lora-job-id") == job_id and headers.get("x-lora-code") == "INVALID_JOB"
        for headers, _ in stored.dead
    )


def _json(body: bytes | None) -> Any:
    return None if body is None else json.loads(body)
