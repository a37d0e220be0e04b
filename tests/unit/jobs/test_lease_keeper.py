"""A lease is renewed through lost answers, and says at least what a receiver may have seen."""

import pytest

from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.record import JobRecord, Lease, Result
from worker.storage.local import LocalStore
from worker.storage.store import StoreUnavailable

LEASE = Lease(owner="me", epoch=3, fingerprint="f")


class ForgetfulStore(LocalStore):
    """Local files; the names in `silent` do what they are asked, and their answer is lost."""

    silent: frozenset[str] = frozenset()

    def read(self, url, **limits):
        return self._answer("read", super().read(url, **limits))

    def write(self, url, body, **conditions):
        return self._answer("write", super().write(url, body, **conditions))

    def _answer(self, name, answer):
        if name in self.silent:
            raise StoreUnavailable("the answer is lost on purpose")
        return answer


@pytest.fixture
def store(tmp_path):
    return ForgetfulStore(tmp_path / "store")


@pytest.fixture
def record(store):
    return JobRecord(store, "b", "j")


@pytest.fixture
def keeper(record):
    """Of a lease that is renewed by nobody but the test."""
    etag = record.claim(LEASE, None)
    keeper = LeaseKeeper(record, LEASE, etag, renew_seconds=3600, term_seconds=7200)
    yield keeper
    keeper.close()


def standing(record):
    return record.lease()[0]


def test_what_a_receiver_may_see_is_written_down_before(keeper, record):
    assert keeper.may_report(20)
    assert standing(record).percent == 20


def test_it_is_written_down_too_where_an_earlier_answer_was_lost(keeper, record, store):
    store.silent = frozenset({"write"})
    assert not keeper.may_report(20)
    store.silent = frozenset()
    assert keeper.may_report(40)
    assert standing(record).percent == 40


def test_nothing_is_confirmed_while_nobody_knows_whose_the_job_is(keeper, record, store):
    store.silent = frozenset({"write"})
    keeper.may_report(20)
    store.silent = frozenset({"read"})
    assert not keeper.may_report(40)
    assert not keeper.lost.is_set()
    store.silent = frozenset()
    assert keeper.may_report(40)


def test_a_job_that_another_has_taken_over_is_lost(keeper, record):
    _, stored = record.lease()
    record.claim(LEASE.model_copy(update={"owner": "another", "epoch": 4}), stored)
    assert not keeper.may_report(20)
    assert keeper.lost.is_set()
    keeper.let_go()
    assert standing(record).owner == "another"


def test_a_lease_is_let_go_of_though_the_last_renewal_had_no_answer(keeper, record, store):
    store.silent = frozenset({"write"})
    keeper.may_report(20)
    store.silent = frozenset()
    keeper.let_go()
    assert standing(record).state == "released"
    assert not keeper.lost.is_set()


def test_nothing_is_reported_of_a_job_that_another_has_ended(keeper, record):
    # Its last owner stood still, was replaced by us, woke up and committed what it had.
    record.commit(
        Result(
            outcome="completed",
            epoch=2,
            fingerprint="f",
            job_id="j",
            style_id=1,
            event="complete",
            event_body="{}",
            webhook_base=None,
        )
    )
    assert not keeper.may_report(20)
    assert keeper.lost.is_set()


def test_nothing_is_reported_once_the_attempt_is_over(keeper):
    assert keeper.is_fresh()
    keeper.close()
    assert not keeper.is_fresh()
    assert not keeper.may_report(20)
