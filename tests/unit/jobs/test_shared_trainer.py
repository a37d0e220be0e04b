"""Several jobs with one child: each hears its own events, has its own stop, and its own end."""

import os
import sys
import threading

import pytest

from tests import standin_trainer as standin
from tests.live_worker import eventually
from tests.unit.jobs.test_trainer_process import order
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import FinishedEvent, StepEvent, StopCommand, StoppedEvent
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerDied, TrainerProcess
from worker.jobs.trainer_slot import TrainerSlot

STANDIN = (sys.executable, "-m", "tests.standin_trainer", "--slots", "4")

ENDLESS = 50_000


@pytest.fixture
def slot(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    slot = TrainerSlot(
        share=Share(None),
        allow_hub=False,
        max_jobs=4,
        start_timeout_seconds=60,
        command=STANDIN,
        most_at_a_time=4,
    )
    slot.trainer()
    yield slot
    slot.kill()


class Job(threading.Thread):
    """One job's thread: what it heard, and how it ended."""

    def __init__(self, trainer, command, limit=60.0, on_event=lambda event: None):
        super().__init__(daemon=True)
        self.trainer, self.command, self.limit, self.on_event = trainer, command, limit, on_event
        self.events, self.stop, self.end = [], None, None
        self.start()

    def run(self):
        def hear(event):
            self.events.append(event)
            self.on_event(event)

        try:
            self.end = self.trainer.train(
                self.command, hear, should_stop=lambda: self.stop, time_limit_seconds=self.limit
            )
        except Exception as error:
            self.end = error

    @property
    def steps(self):
        return [event.step for event in self.events if isinstance(event, StepEvent)]

    def ended(self):
        self.join(60)
        assert not self.is_alive()
        return self.end


@pytest.fixture
def train(slot, tmp_path):
    def begin(job_id, *, steps=ENDLESS, style_id=1, **how):
        folder = tmp_path / job_id
        folder.mkdir()
        return Job(slot, order(folder, job_id=job_id, steps=steps, style_id=style_id), **how)

    return begin


def go_on(*jobs):
    """Every one of them makes further steps."""
    seen = [len(job.steps) for job in jobs]
    eventually(lambda: all(len(job.steps) > n for job, n in zip(jobs, seen, strict=True)))


def test_each_job_hears_its_own_steps_and_finishes_with_its_own_file(train):
    jobs = {count: train(f"j{count}", steps=count) for count in (3, 5, 9)}
    for count, job in jobs.items():
        assert isinstance(job.ended(), FinishedEvent)
        assert job.steps == list(range(1, count + 1))
        assert job.end.job_id == job.command.job_id
        assert {event.job_id for event in job.events} == {job.command.job_id}
        assert job.end.files[0].path.startswith(job.command.output_dir)


@pytest.mark.parametrize("reason", ["cancel", "drain"])
def test_one_is_stopped_and_the_others_train_on(slot, train, reason):
    one, other = train("one"), train("other")
    go_on(one, other)
    one.stop = StopCommand(reason=reason)
    assert isinstance(one.ended(), StoppedEvent)
    assert (one.end.reason, one.end.checkpoint is not None) == (reason, reason == "drain")
    go_on(other)
    assert slot.takes_new


def test_each_has_its_own_time_limit(train):
    short, long = train("short", limit=0.3), train("long")
    assert short.ended().reason == "time_limit"
    go_on(long)


def test_a_child_that_ends_ends_all_of_them_and_the_next_one_gets_another(slot, train):
    neighbours = [train("a"), train("b")]
    go_on(*neighbours)
    poison = train("poison", style_id=standin.CRASHES)
    for job in (*neighbours, poison):
        assert isinstance(job.ended(), TrainerDied)
        assert "exit status 3" in str(job.end)
    slot.recycle()
    assert isinstance(train("next", steps=2).ended(), FinishedEvent)


def test_a_job_that_diverges_says_nothing_against_the_trainer_of_its_neighbours(slot, train):
    neighbour = train("neighbour")
    go_on(neighbour)
    bad = train("bad", style_id=standin.DIVERGES).ended()
    assert bad.code is ErrorCode.NON_FINITE_LOSS
    slot.recycle()
    assert slot.takes_new
    go_on(neighbour)


def test_a_trainer_that_ran_out_of_memory_takes_no_other_job_and_is_replaced_when_it_is_idle(
    slot, train
):
    neighbour = train("neighbour")
    go_on(neighbour)
    first = slot.trainer().pid
    assert isinstance(train("bad", style_id=standin.OUT_OF_MEMORY).ended(), JobError)
    slot.recycle()
    assert not slot.takes_new
    late = train("late", steps=2)
    go_on(neighbour)
    assert late.events == []
    neighbour.stop = StopCommand(reason="cancel")
    neighbour.ended()
    assert isinstance(late.ended(), FinishedEvent)
    assert slot.trainer().pid != first


def test_a_job_that_waits_for_another_trainer_can_be_stopped(slot, train):
    neighbour = train("neighbour")
    go_on(neighbour)
    assert isinstance(train("bad", style_id=standin.OUT_OF_MEMORY).ended(), JobError)
    late = train("late")
    late.stop = StopCommand(reason="drain")
    assert late.ended() == StoppedEvent(job_id="late", reason="drain", step=0)


def test_a_trainer_that_has_served_its_jobs_takes_no_other_and_is_replaced_when_it_is_idle(
    slot, train
):
    first = slot.trainer().pid
    last = train("last")
    for number in range(3):
        train(f"j{number}", steps=1).ended()
        slot.recycle()
    assert not slot.takes_new
    assert slot.trainer().pid == first
    last.stop = StopCommand(reason="cancel")
    last.ended()
    slot.recycle()
    assert slot.takes_new
    assert slot.trainer().pid != first


def test_more_jobs_than_the_trainer_has_slots_wait_for_one(tmp_path, train, slot):
    slot.kill()
    slot._command = (*STANDIN[:-1], "2")
    assert slot.slots == 4, "it has not said otherwise yet"
    jobs = [train(f"j{number}", steps=3) for number in range(4)]
    assert [type(job.ended()) for job in jobs] == [FinishedEvent] * 4
    assert slot.slots == 2


def test_a_listener_that_fails_ends_its_own_job_and_no_other(slot, train):
    def fail(event):
        raise RuntimeError("on purpose")

    neighbour = train("neighbour")
    go_on(neighbour)
    assert isinstance(train("unheard", on_event=fail).ended(), RuntimeError)
    go_on(neighbour)
    assert not slot.takes_new
    assert slot.jobs_now == 1


def test_a_job_that_makes_no_step_any_more_is_the_end_of_all(tmp_path):
    trainer = TrainerProcess(dict(os.environ), command=STANDIN, stuck_after_seconds=1.0)
    trainer.wait_ready(60)
    folders = [tmp_path / name for name in ("hangs", "neighbour")]
    for folder in folders:
        folder.mkdir()
    hangs = Job(trainer, order(folders[0], job_id="hangs", style_id=standin.HANGS_LATER, steps=9))
    eventually(lambda: hangs.steps == [1, 2, 3])
    neighbour = Job(trainer, order(folders[1], job_id="neighbour", steps=ENDLESS))
    assert "it made no step for" in str(hangs.ended())
    assert isinstance(neighbour.ended(), TrainerDied)
