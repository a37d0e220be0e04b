"""Which message does a confirm speak of?"""

import pytest

from worker.broker.confirms import Publication, PublishFailed, Unconfirmed


def publication(key: str = "q", body: bytes = b"1") -> Publication:
    return Publication(
        exchange="", routing_key=key, body=body, message_id=None, headers={}, content_type="t"
    )


def written(*publications: Publication) -> Unconfirmed:
    unconfirmed = Unconfirmed()
    for each in publications:
        unconfirmed.wrote(each)
    return unconfirmed


def test_a_confirm_ends_the_message_of_its_number_alone():
    first, second = publication(), publication()
    written(first, second).answered(2, multiple=False, acked=True)
    assert second.done.result(0) is None
    assert not first.done.done()


def test_a_confirm_of_several_ends_all_up_to_its_number():
    first, second, third = publication(), publication(), publication()
    unconfirmed = written(first, second, third)
    unconfirmed.answered(2, multiple=True, acked=True)
    assert first.done.done()
    assert second.done.done()
    assert not third.done.done()
    assert len(unconfirmed) == 1


def test_a_refusal_is_a_failure():
    refused = publication()
    written(refused).answered(1, multiple=False, acked=False)
    with pytest.raises(PublishFailed, match="refused"):
        refused.done.result(0)


def test_a_returned_message_fails_although_the_broker_confirms_it():
    fine, lost = publication("here"), publication("nowhere")
    unconfirmed = written(fine, lost)
    unconfirmed.returned("", "nowhere", b"1", "312 NO_ROUTE")
    unconfirmed.answered(2, multiple=True, acked=True)
    assert fine.done.result(0) is None
    with pytest.raises(PublishFailed, match=r"queue 'nowhere'.*312 NO_ROUTE"):
        lost.done.result(0)


def test_two_messages_alike_that_both_come_back_both_fail():
    one, other = publication("nowhere"), publication("nowhere")
    unconfirmed = written(one, other)
    unconfirmed.returned("", "nowhere", b"1", "312 NO_ROUTE")
    unconfirmed.returned("", "nowhere", b"1", "312 NO_ROUTE")
    unconfirmed.answered(2, multiple=True, acked=True)
    assert one.done.exception(0) is not None
    assert other.done.exception(0) is not None


def test_an_answer_for_a_caller_that_has_left_is_borne():
    left = publication()
    unconfirmed = written(left)
    assert left.done.cancel()
    unconfirmed.answered(1, multiple=False, acked=True)
    assert len(unconfirmed) == 0


def test_numbers_begin_anew_with_each_channel():
    unconfirmed = written(publication(), publication())
    assert len(unconfirmed.take_all()) == 2
    again = publication()
    unconfirmed.wrote(again)
    unconfirmed.answered(1, multiple=False, acked=True)
    assert again.done.result(0) is None
