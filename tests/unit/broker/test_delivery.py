"""A copy of a message carries its headers on, as long as they leave room for ours."""

import pytest
from pika.spec import BasicProperties

from worker.broker.delivery import CAME_BACK_HEADER, MAX_HEADERS_BYTES, Delivery


def kept(headers, *, message_id=None, redelivered=False):
    delivery = Delivery(0, 1, 1, "q", b"", message_id, headers, redelivered, None, 0.0)
    return delivery.kept_headers()


OURS = {"x-lora-job-id": "a", "traceparent": "00-1-2-01", "x-lora-tries": 3}


def test_headers_are_carried_on_but_for_what_the_broker_writes_itself():
    theirs = {"x-tenant": "t", "list": [1, {"a": None}], "x-death": [{"queue": "q"}]}
    assert kept({**OURS, **theirs}) == {**OURS, "x-tenant": "t", "list": [1, {"a": None}]}


@pytest.mark.parametrize(
    "stuffing",
    [
        {"x-stuffing": "x" * 130_000},
        {f"x-{n}": n for n in range(5_000)},
        {"x-lora-stuffing": "x" * 130_000},
        {"nested": {"a": ["x" * 40_000]}},
    ],
)
def test_headers_that_leave_no_room_are_left_behind(stuffing):
    found = kept({**OURS, **stuffing})
    assert found == OURS
    assert sum(map(len, BasicProperties(headers=found).encode())) < MAX_HEADERS_BYTES


def test_a_copy_goes_to_no_other_queue_than_its_own():
    assert kept({**OURS, "CC": ["model_training"], "BCC": ["elsewhere"]}) == OURS


def test_a_copy_of_a_message_without_an_id_says_that_it_came_back():
    assert kept({}, redelivered=True) == {CAME_BACK_HEADER: 1}
    assert kept({CAME_BACK_HEADER: 1}) == {CAME_BACK_HEADER: 1}
    assert kept({}) == kept({}, message_id="j", redelivered=True) == {}
