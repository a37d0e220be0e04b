"""A job's objects: who may move the checkpoint's pointer, and what is left at the end."""

import pytest

from worker.jobs.record import CheckpointPointer, JobRecord, Lease, LostLease
from worker.storage.local import LocalStore
from worker.storage.store import ObjectUrl


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def record(store):
    return JobRecord(store, "b", "j")


def pointer(epoch, step):
    return CheckpointPointer(step=step, epoch=epoch, url=f"s3://b/{epoch}-{step}", sha256="0")


def test_a_later_claim_moves_the_pointer_though_a_slow_owner_has_just_moved_it(record):
    seen = record.point_to(pointer(1, 10), None)
    record.point_to(pointer(1, 20), seen)
    record.point_to(pointer(2, 15), seen)
    assert record.checkpoint()[0] == pointer(2, 15)


def test_an_owner_that_was_replaced_cannot_move_the_pointer_back(record):
    seen = record.point_to(pointer(1, 10), None)
    record.point_to(pointer(2, 15), seen)
    with pytest.raises(LostLease):
        record.point_to(pointer(1, 20), seen)
    assert record.checkpoint()[0] == pointer(2, 15)


def test_what_is_left_of_an_ended_job_is_its_record(store, record):
    keys = record.keys
    kept = [keys.result, keys.lease, keys.announced, keys.checkpoint]
    gone = [keys.checkpoint_file(1, 10), keys.output_prefix(1).child("a"), keys.output_prefix(2)]
    other = [ObjectUrl("b", "jobs/j2/output/000001/a"), ObjectUrl("b", "models/style_1/a")]
    for url in (*kept, *gone[:2], gone[2].child("b"), *other):
        store.write(url, b"{}", content_type="application/json")
    record.tidy()
    assert set(store.list(ObjectUrl("b", ""))) == {*kept, *other}


def test_nobody_takes_over_by_what_a_lease_was_before_its_owner_renewed_it(record):
    # The renewal changes nothing, and this store makes an ETag of the content alone, as S3 does.
    lease = Lease(owner="slow", epoch=1, fingerprint="f")
    etag = record.claim(lease, None)
    _, seen = record.lease()
    record.renew(lease, etag)
    with pytest.raises(LostLease):
        record.claim(Lease(owner="hasty", epoch=2, fingerprint="f"), seen)
    assert record.lease()[0].owner == "slow"
