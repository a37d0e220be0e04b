"""One thread computes at a time, in the order in which they asked."""

import threading
import time

from worker.training.baton import Baton, aside, breathe


def in_threads(*works):
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # they ask in this order
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_it_is_handed_on_in_the_order_in_which_it_was_asked_for():
    baton, order = Baton(), []

    def worker(name):
        def work():
            for _ in range(3):
                with baton.held():
                    order.append(name)

        return work

    with baton.held():
        begun = threading.Thread(target=lambda: in_threads(*map(worker, "abc")), daemon=True)
        begun.start()
        time.sleep(0.5)
    begun.join(30)
    assert order == list("abcabcabc")


def test_who_breathes_lets_each_of_those_who_wait_compute_once():
    baton, order = Baton(), []

    def long():
        with baton.held():
            order.append("begins")
            time.sleep(0.3)
            breathe()
            order.append("ends")

    def short():
        with baton.held():
            order.append("short")

    in_threads(long, short, short)
    assert order == ["begins", "short", "short", "ends"]


def test_nobody_has_it_who_went_aside_and_then_has_it_again():
    baton, order = Baton(), []
    computed = threading.Event()

    def reads():
        with baton.held():
            with aside():
                assert computed.wait(30)
            order.append("reads")

    def computes():
        with baton.held():
            order.append("computes")
            computed.set()

    in_threads(reads, computes)
    assert order == ["computes", "reads"]


def test_a_thread_that_shares_with_nobody_breathes_and_goes_aside_at_no_cost():
    breathe()
    with aside():
        pass


def test_what_goes_wrong_in_one_thread_leaves_the_baton_to_the_next():
    baton, order = Baton(), []

    def fails():
        try:
            with baton.held(), aside():
                raise ValueError
        except ValueError:
            order.append("failed")

    def goes_on():
        with baton.held():
            order.append("went on")

    in_threads(fails, goes_on)
    assert sorted(order) == ["failed", "went on"]
