"""A stop is heard whichever thread the signal hits."""

import os
import signal
import subprocess
import sys
import threading

from worker.jobs.stopping import StopRequest

#: The signal is blocked on the main thread, so the kernel must hand it to the other one.
_PROGRAM = """
import os, signal, threading, time
from worker.jobs.stopping import StopRequest

stop = StopRequest()
stop.on_signals(again=lambda number: os._exit(7))
threading.Thread(target=lambda: time.sleep(60), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("waiting", flush=True)
stop.wait()
print("stopped", flush=True)
stop.wait()
{then}
"""


def test_a_signal_that_hits_another_thread_wakes_the_main_one():
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(then="")], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGTERM)
    assert program.communicate(timeout=60)[0] == "stopped\n"
    assert program.returncode == 0


def test_a_second_signal_ends_at_once():
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(then="while True: time.sleep(0.1)")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "stopped\n"
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait(60) == 7


def test_any_thread_may_ask_for_a_stop():
    stop = StopRequest()
    assert not stop.wait(0.01)
    threading.Thread(target=stop.request).start()
    assert stop.wait()
    assert stop()
