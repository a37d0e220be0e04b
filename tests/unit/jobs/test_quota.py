"""How many jobs a run may begin, and who is told when none is left."""

from tests.unit.jobs.test_place import JOB, Trainer
from worker.jobs.place import Place
from worker.jobs.quota import JobQuota
from worker.jobs.sharing import Trainee


def place(quota, changes=None):
    changed = (lambda: changes.append(1)) if changes is not None else lambda: None
    return Place(Trainer(), ahead_seconds=30, changed=changed, quota=quota)


def test_without_a_bound_there_is_always_one_more():
    quota = JobQuota()
    for _ in range(3):
        assert quota.reserve()
        quota.begin()
    assert not quota.used_up


def test_a_worker_for_one_job_takes_no_second_one_ahead():
    quota = JobQuota(1)
    only = place(quota)
    assert only.priority(0) == 0
    only.taken(0)
    assert only.begin(0, JOB)
    only.claimed(0)
    only.expect_end(0, 1)
    assert only.priority(1) is None
    only.end(0)
    assert [only.priority(slot) for slot in (0, 1)] == [None, None]
    assert quota.used_up


def test_of_two_trainers_one_looks_for_the_only_job():
    quota = JobQuota(1)
    first, second = place(quota), place(quota)
    assert first.priority(0) == 0
    assert second.priority(0) is None
    assert not quota.used_up


def test_a_message_that_is_no_job_does_not_count_and_another_trainer_may_look():
    quota, changes = JobQuota(1), []
    first, second = place(quota, changes), place(quota)
    first.priority(0)
    first.taken(0)
    first.end(0)
    assert changes == [1]
    assert second.priority(0) == 0
    assert first.priority(0) is None


def test_a_slot_that_lost_its_channel_looks_again_for_the_same_job():
    only = place(JobQuota(1))
    assert [only.priority(0), only.priority(0)] == [0, 0]


def test_a_job_that_waited_in_vain_for_its_turn_may_be_another_one():
    quota = JobQuota(2)
    only = place(quota)
    only.priority(0)
    only.taken(0)
    only.begin(0, JOB)
    only.claimed(0)
    only.expect_end(0, 1)
    assert only.priority(1) == -1
    only.taken(1)
    assert not only.wait(1, Trainee("k"), lambda: True)
    only.end(1)
    assert not quota.used_up
    assert quota.reserve()
    assert not quota.reserve()


def test_a_job_that_had_its_turn_and_turned_out_to_be_none_does_not_count():
    quota = JobQuota(1)
    only = place(quota)
    only.priority(0)
    only.taken(0)
    only.begin(0, JOB)
    only.end(0)
    assert not quota.used_up
    assert quota.reserve()


def test_a_job_that_turns_out_to_be_of_another_kind_is_counted_once():
    quota = JobQuota(2)
    only = place(quota)
    only.priority(0)
    only.taken(0)
    only.begin(0, Trainee("j"))
    assert only.begin(0, Trainee("j", company="those of its kind"))
    only.claimed(0)
    only.claimed(0)
    only.end(0)
    assert quota.reserve()
    assert not quota.reserve()
    assert not quota.used_up


def test_one_that_has_to_wait_again_leaves_another_one_that_waits_its_own_count():
    quota = JobQuota(4)
    trainer = Trainer()
    trainer.slots = 3
    shared = Place(trainer, slots=3, ahead_seconds=30, changed=lambda: None, quota=quota)
    for slot in (0, 1):
        shared.priority(slot)
        shared.taken(slot)
        assert shared.begin(slot, Trainee(str(slot), "X"))
    shared.claimed(0)
    shared.priority(2)
    shared.taken(2)
    # Before it is claimed, the second one turns out to be one that trains alone.
    assert not shared.begin(1, Trainee("1", None))
    assert [shared.priority(slot) for slot in range(6)] == [None] * 6
    for slot in (2, 1, 0):
        shared.end(slot)
    assert [quota.reserve() for _ in range(4)] == [True, True, True, False]
