"""The checker sees each broken promise: a campaign that cannot fail proves nothing."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest

from tests.faults.checker import Arrival, Counts, Published, Stored, check

ADAPTER = b"weights"
FILE = "lora_weights.safetensors"
BODY = {"metadata": {"files": {FILE: hashlib.sha256(ADAPTER).hexdigest()}}}
RESULT = {
    "outcome": "completed",
    "style_id": 10,
    "event": "complete",
    "event_body": json.dumps(BODY),
    "fingerprint": "f",
    "files": [FILE],
    "webhook_base": "http://there",
}
FAILED = {**RESULT, "outcome": "failed", "event": "failed", "event_body": "{}", "files": []}
DEAD = ({"x-lora-job-id": "a", "x-lora-code": "WORKER_CRASHED"}, b"{}")
REFUSED = ({"x-lora-job-id": "a", "x-lora-code": "INVALID_JOB"}, b"{}")


def objects(result=RESULT, **changes):
    found = {
        "jobs/a/result.json": json.dumps(result).encode(),
        f"models/style_10/jobs/a/{FILE}": ADAPTER,
        f"models/style_10/{FILE}": ADAPTER,
        "models/style_10/current.json": json.dumps({"job_id": "a", "files": [FILE]}).encode(),
    } | changes
    return {key: body for key, body in found.items() if body is not None}


def end(event="complete", body=RESULT["event_body"], status=200, key=None):
    return Arrival("a", event, key or f"a:{event}", body.encode(), status)


def progress(percent):
    body = json.dumps({"progress": {"progress_percent": percent}}).encode()
    return Arrival("a", "progress", f"a:progress:{percent}", body, 200)


SENT = (Published("a"),)


def found(stored=None, received=None, published=SENT, steps=()):
    counts = check(
        published,
        stored or Stored(objects()),
        [progress(0), progress(100), end()] if received is None else received,
        steps=steps,
    )
    kept = {n: v for n, v in asdict(counts).items() if v and n != "findings"}
    return counts, kept


def test_a_job_that_went_well_is_clean():
    counts, kept = found()
    assert counts.clean
    assert kept == {"published": 1, "committed": 1}


def test_a_failed_job_with_its_dead_letter_is_clean():
    failed = Stored({"jobs/a/result.json": json.dumps(FAILED).encode()}, dead=[DEAD])
    counts, kept = found(failed, [end("failed", "{}")])
    assert counts.clean
    assert kept == {"published": 1, "failed": 1}


@pytest.mark.parametrize(
    ("stored", "received", "broken"),
    [
        (Stored({}), None, "lost"),
        (Stored(objects(**{f"models/style_10/jobs/a/{FILE}": None})), None, "lost"),
        (Stored(objects(**{f"models/style_10/{FILE}": b"another"})), None, "lost"),
        (Stored({"jobs/a/result.json": json.dumps(FAILED).encode()}), [], "lost"),
        (None, [progress(0)], "lost"),
        (None, [end(status=500)], "lost"),
        (Stored(objects(**{f"models/style_10/jobs/a/{FILE}": b"other"})), None, "duplicated"),
        (Stored(objects(**{"jobs/b/result.json": b"{}"})), None, "duplicated"),
        (Stored(objects(), dead=[DEAD]), None, "contradicting"),
        (None, [end(), end("failed", "{}")], "contradicting"),
        (None, [end(body="{}")], "contradicting"),
        (None, [end(key="a:complete:2")], "contradicting"),
        (None, [end(), progress(100)], "progress_after_terminal"),
        (None, [progress(50), progress(40), end()], "progress_backwards"),
        (Stored(objects(), waiting=2), None, "waiting"),
    ],
)
def test_each_broken_promise_is_seen(stored, received, broken):
    counts, kept = found(stored, received)
    assert not counts.clean
    assert kept[broken] >= 1


def test_the_allowed_window_is_counted_and_no_fault():
    counts, kept = found(received=[end(), end()])
    assert counts.clean
    assert kept["terminal_seen_twice"] == 1


def test_an_event_that_was_given_up_is_not_lost():
    given_up = Stored(objects(), dead_events=[({}, b'{"job_id": "a"}')])
    assert found(given_up, [end(status=404)])[0].clean


def test_a_refused_message_must_be_in_the_dead_letter_queue():
    published = (Published("a"), Published("a", refused=True))
    assert found(published=published)[1]["lost"] == 1
    counts, kept = found(Stored(objects(), dead=[REFUSED]), published=published)
    assert counts.clean
    assert kept == {"published": 2, "committed": 1, "failed": 1}


def test_steps_that_were_made_twice_are_counted():
    assert found(steps=[("a", 1), ("a", 2), ("a", 2), ("b", 2)])[1]["steps_redone"] == 1


def test_sums_add_up():
    one, other = Counts(published=1, lost=1, findings=["x"]), Counts(published=2)
    one.add(other)
    assert one == replace(Counts(published=3, lost=1), findings=["x"])
