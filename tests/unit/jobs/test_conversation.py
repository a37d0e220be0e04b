"""What is said about one job, and how long its stop may take."""

import threading

import pytest

from tests.live_worker import eventually
from tests.unit.jobs.test_trainer_process import order
from worker.contract.pipe import StageEvent, StopCommand, StoppedEvent
from worker.jobs import conversation as module
from worker.jobs.conversation import Conversation


class Child:
    """Obeys nothing by itself."""

    alive = True

    def __init__(self):
        self.sent, self.given_up = [], []

    def send(self, line):
        self.sent.append(line)

    def died(self, otherwise):
        return RuntimeError(otherwise)

    def give_up(self, because):
        self.given_up.append(because)
        return RuntimeError(because)


@pytest.fixture
def child(mocker):
    mocker.patch.object(module, "STOP_SECONDS", 0.3)
    mocker.patch.object(module, "TICK_SECONDS", 0.02)
    return Child()


@pytest.fixture
def job(child, tmp_path):
    """A job that is told to stop at once; how it ended is in `ended`."""
    talk = Conversation(child, order(tmp_path, job_id="mine"), 60.0)
    talk.ended = []

    def hold():
        try:
            told = StopCommand(reason="cancel")
            talk.ended.append(talk.hold(print, should_stop=lambda: told, time_limit_seconds=3600))
        except RuntimeError as error:
            talk.ended.append(error)

    talk.begin = threading.Thread(target=hold, daemon=True).start
    return talk


def test_a_trainer_that_does_not_obey_is_given_up(child, job):
    job.begin()
    eventually(lambda: job.ended, "it was given up")
    assert child.given_up == ["it did not stop when told to"]


def test_a_stop_has_time_while_a_neighbour_exports(child, job):
    job.hear(StageEvent(job_id="neighbour", stage="exporting", status="started"))
    job.begin()
    eventually(lambda: len(child.sent) == 2, "it was told to stop")
    threading.Event().wait(1.0)
    assert child.given_up == []
    job.hear(StageEvent(job_id="neighbour", stage="exporting", status="ended"))
    job.hear(StoppedEvent(job_id="mine", reason="cancel", step=3))
    eventually(lambda: job.ended, "it has stopped")
    assert isinstance(job.ended[0], StoppedEvent)
