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
    slot.tend(MagicMock(channel=lambda: channel), priority=0)
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
    slot.tend(MagicMock(), priority=0)
    calls: list[Any] = channel.basic_consume.call_args_list
    assert [call.args[0] for call in calls] == ["first", "second"]
    assert all(call.kwargs.get("arguments") is None for call in calls)
    assert len({call.kwargs["consumer_tag"] for call in calls}) == 2


def test_the_earlier_queue_is_asked_before_the_slot_listens_to_the_backlog(
    slot: SlotChannel, channel: MagicMock, taken: list[Delivery]
):
    assert [delivery.queue for delivery in taken] == ["first"]
    channel.basic_consume.assert_not_called()


def test_of_two_messages_at_once_the_earlier_queues_is_kept_and_the_other_given_back(
    slot: SlotChannel, channel: MagicMock, taken: list[Delivery]
):
    slot.settle(taken.pop(), "ack")
    slot.free()
    slot.tend(MagicMock(), priority=0)
    first, second = (call.args[1] for call in channel.basic_consume.call_args_list)
    second(channel, Basic.Deliver(delivery_tag=8), BasicProperties(), b"backlog")
    first(channel, Basic.Deliver(delivery_tag=9), BasicProperties(), b"resumed")
    said = MagicMock()
    said.attach_mock(channel.basic_cancel, "cancel")
    said.attach_mock(channel.basic_nack, "nack")
    slot.tend(MagicMock(), priority=0)
    assert [delivery.body for delivery in taken] == [b"resumed"]
    # Given back only once nothing listens: it would come straight back otherwise.
    assert [name for name, *_ in said.mock_calls] == ["cancel", "cancel", "nack"]
    channel.basic_nack.assert_called_once_with(8, requeue=True)
