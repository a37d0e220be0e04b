"""What a sender writes beside a body ends no connection, whatever it is."""

import struct
from datetime import UTC, datetime

import pytest
from pika.spec import BasicProperties

from worker.broker.connection import BrokerAddress


@pytest.fixture(autouse=True)
def _an_address_was_used():
    BrokerAddress("amqp://localhost").parameters("test")


def arrived(headers, *, change=lambda raw: raw, **properties):
    """The properties as they are read from the wire, with `change` made to their bytes."""
    raw = change(b"".join(BasicProperties(headers=headers, **properties).encode()))
    found = BasicProperties()
    found.decode(raw)
    return found


THEN = datetime(2001, 1, 1, tzinfo=UTC)


def later_than_any(raw):
    """A time that no calendar of Python's has, in place of `THEN`."""
    seconds = struct.pack(">Q", int(THEN.timestamp()))
    assert seconds in raw
    return raw.replace(seconds, struct.pack(">Q", 2**64 - 1))


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v, "b"], lambda v: {"a": v}])
def test_a_time_that_cannot_be_held_is_none_and_what_follows_is_read(wrap):
    found = arrived({"when": wrap(THEN), "next": 1}, change=later_than_any)
    assert found.headers == {"when": wrap(None), "next": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_none(value):
    def number(raw):
        return raw.replace(b"l" + struct.pack(">q", 2**40), b"d" + struct.pack(">d", value))

    found = arrived({"number": 2**40, "next": 1}, change=number)
    assert found.headers == {"number": None, "next": 1}


@pytest.mark.parametrize("value", [1e300, -1e300, 2.0**63])
def test_a_number_that_no_copy_can_carry_is_none(value):
    def number(raw):
        return raw.replace(b"l" + struct.pack(">q", 2**40), b"d" + struct.pack(">d", value))

    found = arrived({"number": [2**40], "next": 1}, change=number)
    assert found.headers == {"number": [None], "next": 1}
    assert BasicProperties(headers=found.headers).encode()


@pytest.mark.parametrize(
    "nest",
    [
        lambda inner: b"A" + struct.pack(">I", len(inner)) + inner,
        lambda inner: b"F" + struct.pack(">I", len(inner) + 2) + b"\x01a" + inner,
    ],
)
def test_what_lies_too_deep_is_none_and_what_follows_is_read(nest):
    deep = b"V"
    for _ in range(5000):
        deep = nest(deep)
    table = b"\x01d" + deep + b"\x04nextI" + struct.pack(">i", 1)
    raw = BasicProperties.FLAG_HEADERS.to_bytes(2) + struct.pack(">I", len(table)) + table
    found = BasicProperties()
    found.decode(raw)
    assert found.headers["next"] == 1
    assert BasicProperties(headers=found.headers).encode()
    assert arrived({"again": [[1]]}).headers == {"again": [[1]]}


def test_a_time_that_can_be_held_is_read_as_ever():
    assert arrived({"when": THEN}).headers == {"when": THEN}


def test_names_and_ids_that_are_no_text_are_text_of_the_same_length():
    found = arrived({"name!": 1}, message_id="id!", change=lambda raw: raw.replace(b"!", b"\xe9"))
    assert found.headers == {"name?": 1}
    assert found.message_id == "id?"
    assert BasicProperties(headers=found.headers, message_id=found.message_id).encode()
