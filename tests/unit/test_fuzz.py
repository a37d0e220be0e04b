"""The two doors that strangers have, tried with a few thousand inputs; `make fuzz` tries more."""

import itertools
import json
import logging
import random
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import campaign, images, message_door, messages
from tests.fuzz.campaign import play
from worker.training.decoder_process import DecoderProcess

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=20,
)
#: A machine may have much else to do: how fast inputs are made says nothing here.
PATIENT = settings(deadline=None, suppress_health_check=list(HealthCheck))

FIELDS = st.sampled_from([*messages.FLAT, *messages.ENVELOPED, "parameters", "tags", "job_id"])


@pytest.fixture(scope="module")
def door() -> Iterator[message_door.Door]:
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    config = structlog.get_config()
    message_door.log_here()
    yield message_door.Door()
    root.handlers[:], sys.excepthook, threading.excepthook = kept[0], kept[2], kept[3]
    root.setLevel(kept[1])
    logging.captureWarnings(False)
    structlog.configure(**config)


@settings(PATIENT, max_examples=200)
@given(st.binary(max_size=2000))
def test_any_bytes_are_an_order_or_a_refusal(door, body):
    assert door(body) in ("refused", "refused and told")


@settings(PATIENT, max_examples=300)
@given(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans())
def test_any_body_is_an_order_or_a_refusal(door, changes, flat):
    message = {**(messages.FLAT if flat else messages.ENVELOPED), **changes}
    assert door(json.dumps(message).encode()) in ("accepted", "refused", "refused and told")


@settings(PATIENT, max_examples=100)
@given(st.text(max_size=300))
def test_any_id_of_the_broker_is_plain_or_refused(door, message_id):
    body = json.dumps({k: v for k, v in messages.FLAT.items() if k != "job_id"}).encode()
    door(body, message_id)


def test_two_thousand_messages_break_nothing(door):
    dice = random.Random(1)
    tally = play(
        "messages",
        messages.bodies(dice),
        door,
        seed=1,
        count=2_000,
        memory_limit_bytes=2**40,
    )
    assert tally.clean, tally.broken
    assert set(tally.outcomes) == {"accepted", "refused", "refused and told"}


def test_sixty_pictures_break_nothing(tmp_path):
    with DecoderProcess() as decoder:
        door = images.Door(tmp_path, decoder)
        tally = play(
            "images",
            images.files(random.Random(2)),
            door,
            seed=2,
            count=60,
            memory_limit_bytes=images.MEMORY_LIMIT_BYTES,
            cpu_seconds=door.cpu_seconds,
            memory_bytes=door.memory_bytes,
        )
    assert tally.clean, tally.broken
    assert {"decoded", "refused: damaged"} <= set(tally.outcomes)


def test_a_campaign_sees_crashes_hangs_and_memory(tmp_path, monkeypatch):
    """A campaign that cannot fail proves nothing."""
    monkeypatch.setattr(campaign, "KEPT", tmp_path)
    clock = itertools.count(step=3.0)

    def door(body: bytes) -> str:
        if body == b"bad":
            raise ValueError("broken")
        return "fine"

    inputs = iter([("good", b"good"), ("bad", b"bad")])
    tally = play(
        "test",
        inputs,
        door,
        seed=0,
        count=2,
        memory_limit_bytes=10,
        cpu_seconds=lambda: 2 * next(clock),
        memory_bytes=lambda: 11,
    )
    assert not tally.clean
    found = json.loads(tally.line(1.0))
    assert (found["inputs"], found["crashes"], found["hangs"]) == (2, 1, 2)
    assert (tally.memory_bytes, tally.memory_limit_bytes) == (11, 10)
    assert any(file.read_bytes() == b"bad" for file in tmp_path.iterdir())
