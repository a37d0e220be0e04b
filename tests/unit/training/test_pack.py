"""Who passes with whom, and when? The pack's decisions, with passes that say who was in them."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from worker.training.baton import Baton, breathe
from worker.training.packing import pack as module
from worker.training.packing import packed_seat
from worker.training.packing.pack import Pack
from worker.training.packing.packed_seat import Needs


@pytest.fixture(autouse=True)
def passes(mocker):
    """Micro-batches that are names; alone they come to `alone`."""
    mocker.patch.object(module, "likeness", lambda work: work.like)
    mocker.patch.object(packed_seat, "pass_alone", lambda work: f"{work.name} alone")


def work(name, like="same", step=0):
    trainee = SimpleNamespace(recorded=None, step=step)
    trainee.adapter = SimpleNamespace(buffer=SimpleNamespace(grad=None))
    return SimpleNamespace(name=name, like=like, trainee=trainee)


def together(works):
    return [f"{one.name} of {len(works)}" for one in works]


class Jobs:
    """Threads that each make some steps in a pack."""

    def __init__(self, shared=together, *, slots=8, **rules):
        self.baton = Baton()
        self.passed = []

        def noted(works):
            self.passed.append("".join(one.name for one in works))
            return shared(works)

        self.pack = Pack(self.baton, noted, slots=slots, **rules)
        self.threads, self.losses, self.reports = [], {}, {}
        self.seats = {}

    def begin(self, name, steps, *, like="same", needs=None, stop=lambda: None, at=lambda step: 0):
        """Start a job; `at` is called before each step, with the baton."""
        seated = threading.Event()

        def run():
            reports = self.reports.setdefault(name, [])
            with (
                self.baton.held(),
                self.pack.seat(needs or Needs(), reports.append, stop) as seat,
            ):
                self.seats[name] = seat
                seated.set()
                with self.baton.laid_down():
                    self.go.wait(30)
                losses = self.losses.setdefault(name, [])
                for step in range(steps):
                    at(step)
                    losses.append(seat.take_part(work(name, like, step)))

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()
        return seated

    go: threading.Event

    def all(self, *jobs, **rules):
        """Run jobs to their end; all are seated before any begins."""
        self.go = threading.Event()
        for name, steps in jobs:
            own = rules.get(name, {})
            assert self.begin(name, steps, **own).wait(30)
        self.go.set()
        self.end()

    def end(self):
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


def test_all_who_train_are_in_each_pass_in_the_order_of_their_seats_until_they_leave():
    jobs = Jobs()
    jobs.all(("a", 4), ("b", 2), ("c", 3))
    assert jobs.passed == ["abc", "abc", "ac"]
    assert jobs.losses["a"] == ["a of 3", "a of 3", "a of 2", "a alone"]
    assert jobs.seats["a"].summary() == {"packing": {"slots": 8, "mean_company": 2.25}}
    assert jobs.seats["b"].summary()["packing"]["mean_company"] == 3


def test_one_who_trains_by_itself_lets_another_one_join():
    jobs = Jobs()
    jobs.go = threading.Event()
    jobs.go.set()
    comes = threading.Event()

    def begin_another(step):
        if step == 1:
            jobs.begin("b", 2)
            time.sleep(0.1)  # it asks for the baton meanwhile
            comes.set()

    jobs.begin("a", 50, at=begin_another)
    assert comes.wait(30)
    jobs.end()
    assert jobs.passed == ["ab", "ab"]
    assert "a alone" in jobs.losses["a"][-1]


def test_a_seat_that_was_left_is_the_next_ones():
    jobs = Jobs()
    jobs.all(("a", 2), ("b", 1), ("c", 3))
    assert [jobs.seats[name].number for name in "abc"] == [0, 1, 2]
    jobs.all(("d", 1), ("e", 1))
    assert [jobs.seats[name].number for name in "de"] == [0, 1]


def test_one_who_is_away_is_not_waited_for_and_others_compute_meanwhile():
    jobs, others_done = Jobs(), threading.Event()

    def look(step):
        if step == 1:
            with jobs.seats["a"].away():
                assert others_done.wait(30)

    def tell(step):
        if step == 2:
            others_done.set()

    jobs.all(("a", 3), ("b", 3), ("c", 3), a={"at": look}, b={"at": tell})
    assert jobs.passed[:2] == ["abc", "bc"]
    assert len(jobs.losses["a"]) == 3


def test_one_who_computes_something_of_its_own_is_not_waited_for_either():
    jobs, others_done = Jobs(), threading.Event()

    def draw(step):
        if step == 1:
            with jobs.seats["a"].apart():
                while not others_done.is_set():
                    breathe()

    def tell(step):
        if step == 2:
            others_done.set()

    jobs.all(("a", 3), ("b", 3), ("c", 3), a={"at": draw}, b={"at": tell})
    assert jobs.passed[:2] == ["abc", "bc"]
    assert len(jobs.losses["a"]) == 3


def test_where_the_device_is_of_no_use_any_more_nobody_tries_by_itself():
    ended = []

    def broken(works):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    jobs = Jobs(broken)
    jobs.go = threading.Event()
    noted = jobs.pack.pass_for

    def pass_for(seat, one):
        try:
            return noted(seat, one)
        except torch.AcceleratorError:
            ended.append(one.name)
            return "the process ends"

    jobs.pack.pass_for = pass_for
    for name in "ab":
        assert jobs.begin(name, 1).wait(30)
    jobs.go.set()
    jobs.end()
    assert len(ended) == 1


def test_only_those_that_are_alike_pass_together():
    jobs = Jobs()
    jobs.all(("a", 1), ("b", 1), ("c", 1), ("d", 1), b={"like": "x"}, d={"like": "x"})
    assert jobs.passed == ["ac", "bd"]


def test_what_is_like_nothing_passes_alone_and_is_waited_for_all_the_same():
    jobs = Jobs()
    jobs.all(("a", 1), ("b", 1), ("c", 1), b={"like": None})
    assert jobs.passed == ["ac"]
    assert jobs.losses["b"] == ["b alone"]


def test_where_memory_is_short_fewer_go_into_a_pass_and_nobody_fails():
    def scarce(works):
        if len(works) > 3:
            raise torch.OutOfMemoryError
        return together(works)

    jobs = Jobs(scarce)
    jobs.all(*((name, 2) for name in "abcdefg"))
    assert jobs.passed == ["abcdefg", "abc", "de", "fg", "abc", "de", "fg"]
    assert jobs.losses["g"] == ["g of 2", "g of 2"]
    assert [report.event for report in jobs.reports["a"]] == ["fewer_jobs_in_a_pass"]


def test_where_memory_is_short_even_for_two_each_passes_alone():
    def none_at_all(works):
        raise torch.OutOfMemoryError

    jobs = Jobs(none_at_all)
    jobs.all(("a", 2), ("b", 2))
    assert jobs.passed == ["ab"]
    assert jobs.losses["a"] == ["a alone", "a alone"]


def test_a_pass_that_cannot_be_made_is_made_by_each_alone_and_said_once():
    def broken(works):
        raise ValueError("no")

    jobs = Jobs(broken)
    jobs.all(("a", 3), ("b", 3))
    assert jobs.passed == ["ab"]
    assert jobs.losses["b"] == ["b alone"] * 3
    [report] = jobs.reports["b"]
    assert (report.event, report.fields) == ("pass_not_shared", {"reason": "ValueError: no"})


def test_a_job_that_does_not_fit_beside_the_others_waits_until_one_leaves_and_says_so():
    jobs = Jobs()
    needs = Needs(kept=10, a_pass=41, free=lambda: 100)
    jobs.go = threading.Event()
    assert jobs.begin("a", 1, needs=needs).wait(30)
    late = jobs.begin("b", 1, needs=needs)
    assert not late.wait(0.5)
    assert [(one.stage, one.status) for one in jobs.reports["b"]] == [("waiting", "started")]
    jobs.go.set()
    assert late.wait(30)
    jobs.end()
    _, ended = jobs.reports["b"]
    assert (ended.stage, ended.status) == ("waiting", "ended")
    assert ended.seconds >= 0.5
    assert jobs.losses["b"] == ["b alone"]


def test_a_job_that_waits_for_room_does_not_wait_when_it_is_to_stop():
    jobs = Jobs()
    needs = Needs(kept=10, a_pass=90, free=lambda: 100)
    jobs.go = threading.Event()
    assert jobs.begin("a", 1, needs=needs).wait(30)
    assert jobs.begin("b", 0, needs=needs, stop=lambda: "cancel").wait(30)
    jobs.go.set()
    jobs.end()


def test_a_job_that_waits_for_room_is_not_overtaken_by_those_that_need_less():
    jobs = Jobs()
    large, small = (Needs(a_pass=size, free=lambda: 100) for size in (60, 40))
    jobs.go, leave = threading.Event(), threading.Event()
    assert jobs.begin("a", 1, needs=small).wait(30)
    assert jobs.begin("b", 1, needs=small, at=lambda step: leave.wait(30)).wait(30)
    waits = jobs.begin("c", 1, needs=large)
    assert not waits.wait(0.3)
    later = jobs.begin("d", 1, needs=small)
    jobs.go.set()
    leave.set()
    assert waits.wait(30)
    assert later.wait(30)
    jobs.end()
    assert jobs.seats["c"].number == 0


def test_a_job_that_can_have_no_company_does_not_wait_for_any():
    pack = Pack(Baton(), together, slots=2, wait_seconds=3600)
    with pack._baton.held(), pack.seat(Needs(), print, lambda: None, sociable=False) as seat:
        assert seat.number == 0


def test_a_job_waits_for_company_no_longer_than_it_may():
    jobs = Jobs(wait_seconds=0.5)
    jobs.go = threading.Event()
    jobs.go.set()
    began = time.monotonic()
    assert jobs.begin("a", 1).wait(30)
    assert time.monotonic() - began >= 0.5
    jobs.end()
    jobs = Jobs(wait_seconds=30)
    jobs.go = threading.Event()
    began = time.monotonic()
    first = jobs.begin("a", 1)
    assert jobs.begin("b", 1).wait(30)
    assert first.wait(30)
    assert time.monotonic() - began < 20
    jobs.go.set()
    jobs.end()
    assert jobs.passed == ["ab"]


def test_all_stop_after_the_same_pass():
    jobs = Jobs()
    stopped = {}

    def look(name):
        def at(step):
            if step == 2 and name == "b":
                jobs.pack.drain()
            if jobs.pack.drains:
                stopped.setdefault(name, step)

        return at

    jobs.all(*((name, 6) for name in "abc"), **{name: {"at": look(name)} for name in "abc"})
    assert stopped == {"a": 3, "b": 3, "c": 3}


def test_the_company_of_a_pass_is_the_place_in_it_and_who_is_beside_how_far():
    def company(*names, steps=2):
        jobs = Jobs()
        said = {}

        def at(name):
            def note(step):
                jobs.seats[name].belongs_to = f"job {name}"
                said[name] = jobs.seats[name].company

            return note

        jobs.all(*((name, steps) for name in names), **{name: {"at": at(name)} for name in names})
        return said

    first, again, longer = company("a", "b"), company("a", "b"), company("a", "b", steps=5)
    assert first == again == longer
    assert first["a"].startswith("1 of 2 beside ")
    assert first["b"].startswith("2 of 2 beside ")
    assert company("a", "c")["a"] != first["a"]
    assert company("b", "a")["a"].startswith("2 of 2 beside ")
    assert company("a")["a"] is None
