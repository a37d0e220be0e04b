"""Two slots, one trainer: which slot may take a message, and whose turn it is to train."""

import threading

import pytest

from tests.live_worker import eventually
from worker.jobs.place import Place
from worker.jobs.sharing import Trainee

#: That of any of these.
JOB = Trainee("j")


class Trainer:
    """Notes what is done to it."""

    slots, takes_new = 1, True

    def __init__(self):
        self.done = []

    def warm_up(self):
        self.done.append("warm_up")

    def recycle(self):
        self.done.append("recycle")

    def close(self):
        self.done.append("close")


@pytest.fixture
def trainer():
    return Trainer()


@pytest.fixture
def changes():
    return []


@pytest.fixture
def place(trainer, changes):
    return Place(trainer, ahead_seconds=30, changed=lambda: changes.append(1))


def wanted():
    return False


def unwanted():
    return True


def both(place):
    return [place.priority(slot) for slot in (0, 1)]


def train_in(place, slot):
    place.taken(slot)
    assert place.begin(slot, JOB)


def test_of_two_free_slots_one_looks_for_a_message(place):
    assert both(place) == [0, None]
    assert both(place) == [0, None]


def test_no_second_message_is_taken_while_a_long_training_runs(place):
    train_in(place, 0)
    assert place.priority(1) is None
    place.expect_end(0, 31)
    assert place.priority(1) is None


def test_a_training_that_is_nearly_done_lets_the_other_slot_look_after_idle_workers(place, changes):
    train_in(place, 0)
    place.expect_end(0, 29)
    assert changes == [1]
    assert place.priority(1) == -1


def test_a_slot_that_looks_goes_on_when_the_estimate_rises(place):
    """Closing a consumer would give back, as redelivered, what is on its way."""
    train_in(place, 0)
    place.expect_end(0, 29)
    assert place.priority(1) == -1
    place.expect_end(0, 3000)
    assert place.priority(1) == -1
    place.end(0)
    assert place.priority(0) is None
    assert place.priority(1) == 0


def test_one_job_waits_at_most(place):
    train_in(place, 0)
    place.expect_end(0, 1)
    place.priority(1)
    place.taken(1)
    assert both(place) == [None, None]
    assert not place.begin(1, JOB)


def test_the_next_job_trains_while_the_last_ones_files_are_stored(place, trainer, changes):
    train_in(place, 0)
    place.end(0)  # trained; its slot stores
    assert trainer.done == ["recycle"]
    assert changes == [1]
    assert place.priority(1) == 0
    train_in(place, 1)
    place.end(0)  # its delivery is settled
    assert not place.begin(0, JOB)
    assert trainer.done == ["recycle"]


def test_a_waiting_job_has_its_turn_when_the_one_before_it_ends(place):
    train_in(place, 0)
    place.taken(1)
    turns = []
    waiting = threading.Thread(target=lambda: turns.append(place.wait(1, JOB, wanted)))
    waiting.start()
    place.end(0)
    waiting.join(20)
    assert turns == [True]
    assert place.begin(1, JOB)


def test_a_waiting_job_that_is_not_wanted_any_more_lets_another_be_taken(place):
    train_in(place, 0)
    place.expect_end(0, 1)
    place.taken(1)
    assert not place.wait(1, JOB, unwanted)
    place.end(1)
    assert place.priority(1) == -1


def test_a_job_that_is_not_wanted_any_more_does_not_take_a_free_turn(place):
    place.taken(0)
    assert not place.wait(0, JOB, unwanted)
    place.end(0)
    train_in(place, 1)


def test_a_job_that_waited_in_vain_is_the_last_one_taken_ahead_of_that_training(trainer):
    place = Place(trainer, ahead_seconds=0.01, changed=lambda: None)
    train_in(place, 0)
    place.expect_end(0, 0)
    assert place.priority(1) == -1
    place.taken(1)
    assert not place.wait(1, JOB, wanted)
    place.end(1)
    place.expect_end(0, 0)
    assert place.priority(1) is None
    place.end(0)
    assert place.priority(1) == 0


def test_without_seconds_ahead_nothing_is_taken_before_the_trainer_is_free(trainer):
    place = Place(trainer, ahead_seconds=0, changed=lambda: None)
    train_in(place, 0)
    place.expect_end(0, 0)
    assert place.priority(1) is None
    place.end(0)
    assert place.priority(1) == 0


def test_a_message_that_needs_no_trainer_leaves_the_turn_to_others(place, trainer):
    place.taken(0)
    place.end(0)
    assert trainer.done == []
    assert both(place) == [0, None]


def test_a_trainer_that_cannot_be_replaced_is_nothing_to_the_job_that_has_finished(
    place, trainer, mocker
):
    mocker.patch.object(trainer, "recycle", side_effect=OSError("no process can be started"))
    train_in(place, 0)
    place.end(0)
    train_in(place, 1)


def test_a_thread_of_the_place_ends_only_when_all_are_done(place, trainer):
    """The trainer dies with the thread that started it, whichever that was."""
    first = threading.Thread(target=place.close)
    first.start()
    eventually(lambda: place._threads == 1)
    assert first.is_alive()
    assert trainer.done == []
    place.close()
    first.join(20)
    assert not first.is_alive()
    assert trainer.done == ["close"]
