"""A failpoint strikes where it says, and not a moment later."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.failpoints import Fault
from tests.live_worker import eventually

_PROGRAM = """
import sys, threading, time
from pathlib import Path
from tests.faults.failpoints import Failpoints, Fault

folder = Path(sys.argv[1])
points = Failpoints("supervisor", Fault.parse(sys.argv[2]), folder)
done = folder / "done"
threading.Thread(target=lambda: points.around("write", done.touch, lambda: None)).start()
time.sleep(60)
"""


def _is_done_when_it_stands_still(folder):
    folder.mkdir()
    fault = Fault("supervisor", "stop", "before", "write").text()
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(folder), fault])
    try:
        state = Path(f"/proc/{process.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it stands")
        return (folder / "done").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_thread_that_stops_its_process_does_not_go_on_until_the_main_thread_has_heard(tmp_path):
    # More processes than cores: the main thread has to wait for its turn.
    folders = [tmp_path / str(number) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(_is_done_when_it_stands_still, folders))
    assert sum(done) == 0
