"""Several jobs at one trainer: who is taken, who begins, who waits, and that nobody starves."""

import threading

import pytest

from worker.jobs import place as place_module
from worker.jobs.place import Place
from worker.jobs.sharing import Trainee

SLOTS = 3
SLOW = 3000.0


class Trainer:
    """Has room, until told otherwise."""

    def __init__(self):
        self.slots, self.takes_new, self.recycled = SLOTS, True, 0

    def warm_up(self):
        pass

    def recycle(self):
        self.recycled += 1


@pytest.fixture
def trainer():
    return Trainer()


@pytest.fixture
def place(trainer):
    return Place(trainer, slots=SLOTS, ahead_seconds=30, changed=lambda: None)


def of(company, name="j"):
    return Trainee(f"{name}-{company}", company)


def priorities(place):
    return [place.priority(slot) for slot in range(2 * SLOTS)]


def train_in(place, slot, company="X"):
    assert place.priority(slot) is not None
    place.taken(slot)
    assert place.begin(slot, of(company, str(slot)))


def test_jobs_that_can_share_begin_beside_each_other_until_all_slots_are_taken(place):
    for slot in range(SLOTS):
        train_in(place, slot)
    assert priorities(place) == [None] * 2 * SLOTS


def test_the_fuller_a_trainer_the_later_it_is_served_and_last_one_that_looks_ahead(place):
    seen = []
    for slot in range(SLOTS):
        seen.append(place.priority(slot))
        train_in(place, slot)
    place.expect_end(1, 29)
    seen.append(place.priority(4))
    assert seen == [0, -1, -2, -3]


def test_one_slot_looks_at_a_time(place):
    train_in(place, 0)
    assert priorities(place) == [-1, None, None, None, None, None]


def test_one_that_has_ended_makes_room_for_another(place, trainer):
    for slot in range(SLOTS):
        train_in(place, slot)
    place.end(1)
    assert trainer.recycled == 1
    train_in(place, 4)


def test_of_a_full_trainer_one_that_is_nearly_done_lets_another_be_taken(place):
    for slot in range(SLOTS):
        train_in(place, slot)
    place.expect_end(0, SLOW)
    assert place.priority(4) is None
    place.expect_end(2, 29)
    assert place.priority(4) == -SLOTS


def test_a_job_that_cannot_share_waits_until_all_have_ended_and_nobody_joins_meanwhile(place):
    train_in(place, 0)
    train_in(place, 1)
    place.priority(2)
    place.taken(2)
    other = of("Y")
    assert not place.begin(2, other)
    assert priorities(place) == [None] * 2 * SLOTS
    turns = []
    waiting = threading.Thread(target=lambda: turns.append(place.wait(2, other, lambda: False)))
    waiting.start()
    place.end(0)
    assert priorities(place) == [None] * 2 * SLOTS
    assert turns == []
    place.end(1)
    waiting.join(20)
    assert turns == [True]
    assert place.priority(3) == -1


def test_beside_a_job_that_trains_alone_nobody_is_taken_before_it_is_nearly_done(place):
    train_in(place, 0, company=None)
    assert place.priority(1) is None
    place.expect_end(0, 29)
    assert place.priority(1) == -SLOTS
    place.taken(1)
    assert not place.begin(1, of("X"))
    place.end(0)
    assert place.begin(1, of("X"))


def test_beside_a_trainer_that_is_to_be_replaced_nobody_is_taken_before_all_are_nearly_done(
    place, trainer
):
    train_in(place, 0)
    train_in(place, 1)
    trainer.takes_new = False
    place.expect_end(0, 29)
    assert place.priority(2) is None
    place.expect_end(1, 29)
    assert place.priority(2) == -SLOTS


def test_a_trainer_that_says_it_has_fewer_slots_gets_fewer_jobs(place, trainer):
    trainer.slots = 2
    train_in(place, 0)
    train_in(place, 1)
    assert place.priority(2) is None


def test_after_one_that_could_not_join_was_given_back_the_trainer_waits_before_it_looks_again(
    trainer, mocker
):
    place = Place(trainer, slots=SLOTS, ahead_seconds=0, changed=lambda: None)
    train_in(place, 0)
    place.priority(1)
    place.taken(1)
    assert not place.wait(1, of("Y"), lambda: False)
    place.end(1)
    assert priorities(place) == [None] * 2 * SLOTS
    mocker.patch.object(place_module, "_LOOK_AGAIN_SECONDS", 0)
    assert place.priority(1) == -1


def test_after_one_that_could_not_join_was_given_back_the_next_end_lets_another_be_taken(trainer):
    place = Place(trainer, slots=SLOTS, ahead_seconds=0, changed=lambda: None)
    train_in(place, 0)
    train_in(place, 1)
    place.priority(2)
    place.taken(2)
    assert not place.wait(2, of("Y"), lambda: False)
    place.end(2)
    place.end(0)
    assert place.priority(2) == -1


def test_a_job_whose_earlier_claim_is_still_trained_here_waits(place):
    train_in(place, 0)
    place.priority(1)
    place.taken(1)
    assert not place.begin(1, of("X", "0"))


def test_a_job_that_is_to_train_alone_after_all_gives_its_turn_back_and_waits(place):
    """While it waited another worker had it, and its trainer ended."""
    train_in(place, 0)
    train_in(place, 1)
    loner = Trainee("1-X", None)
    assert not place.begin(1, loner)
    assert priorities(place) == [None] * 2 * SLOTS
    place.end(0)
    assert place.begin(1, loner)
