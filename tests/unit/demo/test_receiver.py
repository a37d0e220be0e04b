"""The receiver that demos and tests hear webhooks with."""

import socket
import struct
import threading

import requests

from tests.live_worker import eventually
from worker.demo.receiver import Receiver


def test_one_that_is_stopped_before_it_serves_is_stopped():
    receiver = Receiver()
    stopping = threading.Thread(target=receiver.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_sender_that_goes_away_in_the_middle_is_not_worth_a_traceback(capfd):
    with Receiver() as receiver:
        serving = threading.active_count()
        sender = socket.create_connection(("127.0.0.1", receiver.port))
        sender.sendall(b"POST /complete HTTP/1.1\r\n")
        # Closed with a reset, as by a worker that is killed.
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.close()
        requests.post(f"{receiver.url}/progress", json={}, timeout=10)
        eventually(lambda: threading.active_count() == serving, "both connections are over")
    assert capfd.readouterr().err == ""
