"""A store is tried, before the first job, with every kind of request that jobs make of it."""

import pytest

from worker.storage.local import LocalStore
from worker.storage.store import ObjectUrl, StorageError, StoreUnavailable

PREFIX = ObjectUrl("b", "jobs/")


class NoUploads(LocalStore):
    """Takes small documents, and files as `answer` says."""

    answer: Exception

    def upload(self, url, path, **about):
        raise self.answer


@pytest.fixture
def store(tmp_path):
    return NoUploads(tmp_path / "store")


def test_a_store_that_takes_no_file_is_found_before_a_job_is_trained_for_nothing(store):
    store.answer = StorageError("The store answered 411 MissingContentLength.")
    found = store.probe(PREFIX)
    assert not found.writable
    assert "411 MissingContentLength" in found.reason
    assert list(store.list(PREFIX)) == []


def test_a_store_that_is_away_meanwhile_is_asked_again(store):
    store.answer = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        store.probe(PREFIX)
