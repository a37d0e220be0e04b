"""Who may be in a trainer together, and what is said of those who wait."""

import threading

from worker.training.baton import Baton
from worker.training.packing.turns import Turns


def test_a_job_of_another_company_waits_until_all_have_left_and_says_so():
    baton, said, inside = Baton(), [], threading.Event()
    turns = Turns(baton)

    def other():
        with baton.held(), turns.turn("other", said.append, lambda: None) as alone:
            assert alone
            inside.set()

    thread = threading.Thread(target=other, daemon=True)
    with (
        baton.held(),
        turns.turn("ours", said.append, lambda: None) as first,
        turns.turn("ours", said.append, lambda: None) as second,
    ):
        assert (first, second) == (True, False)
        assert said == []
        thread.start()
        with baton.laid_down():
            assert not inside.wait(0.5)
    assert inside.wait(30)
    thread.join(30)
    assert [(one.stage, one.status) for one in said] == [
        ("waiting", "started"),
        ("waiting", "ended"),
    ]
    assert said[0].fields == {"inside": 2}
