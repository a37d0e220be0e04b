"""Commands of other threads are carried out in order by one, and every one is answered."""

import threading

import pytest

from worker.broker import command_queue
from worker.broker.command_queue import CommandQueue


class Served:
    """A queue whose thread goes round whenever it is woken."""

    def __init__(self):
        self.awake, self.closing = threading.Event(), False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.commands = CommandQueue(self.thread, self.awake.set)

    def _serve(self):
        while not self.closing:
            self.awake.wait()
            self.awake.clear()
            self.commands.run()
        self.commands.close()

    def close(self):
        self.closing = True
        self.awake.set()
        self.thread.join(10)


@pytest.fixture
def served():
    served = Served()
    served.commands.open()
    served.thread.start()
    yield served
    served.close()
    assert not served.thread.is_alive()


def test_a_command_is_carried_out_on_the_thread_and_its_answer_comes_back(served):
    ran_on = []

    def command():
        ran_on.append(threading.current_thread())
        return True

    assert served.commands.call(command) is True
    assert served.commands.call(lambda: False) is False
    assert ran_on == [served.thread]


def test_a_command_that_the_thread_itself_gives_is_carried_out_at_once(served):
    nested = []

    def command():
        return served.commands.call(lambda: not nested.append("inner"))

    assert served.commands.call(command) is True
    assert nested == ["inner"]


def test_commands_are_carried_out_in_the_order_in_which_they_came():
    commands, order = CommandQueue(threading.Thread(), lambda: None), []
    commands.open()
    answers = [commands.submit(lambda i=i: not order.append(i)) for i in range(5)]
    commands.run()
    assert order == [0, 1, 2, 3, 4]
    assert all(answer.result(0) for answer in answers)


def test_nothing_is_carried_out_before_the_opening_or_after_the_end(served):
    unopened = CommandQueue(threading.Thread(), lambda: None)
    assert unopened.call(lambda: True) is False
    served.close()
    assert served.commands.call(lambda: True) is False


def test_what_came_before_the_end_is_still_answered():
    commands = CommandQueue(threading.Thread(), lambda: None)
    commands.open()
    answer = commands.submit(lambda: True)
    commands.close()
    assert answer.result(0) is True


def test_a_command_that_breaks_is_answered_and_breaks_the_thread():
    commands = CommandQueue(threading.Thread(), lambda: None)
    commands.open()
    answer = commands.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        commands.run()
    assert answer.result(0) is False


def test_a_command_that_is_not_begun_in_time_never_is(monkeypatch):
    monkeypatch.setattr(command_queue, "COMMAND_SECONDS", 0.01)
    commands, done = CommandQueue(threading.Thread(), lambda: None), []
    commands.open()
    assert commands.call(lambda: not done.append("too late")) is False
    commands.run()
    assert done == []
