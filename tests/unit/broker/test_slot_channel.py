"""What a slot says to the broker, where a real one would not show the difference."""

from typing import Any
from unittest.mock import MagicMock

import pytest
from pika.spec import Basic, BasicProperties

from worker.broker.delivery import Delivery
from worker.broker.slot_channel import SlotChannel


@pytest.fixture
def channel() -> MagicMock:
    channel = MagicMock(is_open=True)
    waiting = [(Basic.GetOk(delivery_tag=7), BasicProperties(), b"job")]
    channel.basic_get.side_effect = lambda _queue: waiting.pop() if waiting else (None, None, None)
    return channel


@pytest.fixture
def taken() -> list[Delivery]:
    return []


@pytest.fixture
def slot(channel: MagicMock, taken: list[Delivery]) -> SlotChannel:
    slot = SlotChannel(
        0,
        queues=["first", "second"],
        name="test",
        on_delivery=taken.append,
        declare_again=lambda _connection: None,
    )
    slot.tend(MagicMock(channel=lambda: channel), accepting=True)
    return slot


def test_giving_back_is_a_nack_because_newer_brokers_count_every_reject(
    slot: SlotChannel, channel: MagicMock, taken: list[Delivery]
):
    assert slot.settle(taken[0], "requeue")
    channel.basic_nack.assert_called_once_with(7, requeue=True)
    channel.basic_reject.assert_not_called()


def test_a_channel_that_has_died_is_noticed_before_anything_is_written_to_it(
    slot: SlotChannel, channel: MagicMock, taken: list[Delivery]
):
    channel.is_open = False
    assert not slot.settle(taken[0], "ack")
    channel.basic_ack.assert_not_called()
    assert slot.generation == 0
    assert slot.busy


def test_consumers_ask_for_nothing_that_some_versions_ignore_and_others_refuse(
    slot: SlotChannel, channel: MagicMock, taken: list[Delivery]
):
    assert slot.settle(taken[0], "ack")
    slot.free()
    slot.tend(MagicMock(), accepting=True)
    calls: list[Any] = channel.basic_consume.call_args_list
    assert [call.args[0] for call in calls] == ["first", "second"]
    assert all("arguments" not in call.kwargs for call in calls)
    assert len({call.kwargs["consumer_tag"] for call in calls}) == 2
