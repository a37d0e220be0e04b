"""The receiver that demos and tests hear webhooks with."""

import threading

from worker.demo.receiver import Receiver


def test_one_that_is_stopped_before_it_serves_is_stopped():
    receiver = Receiver()
    stopping = threading.Thread(target=receiver.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()
