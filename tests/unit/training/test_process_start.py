"""How the trainer process begins, and ends when nobody is there."""

import subprocess
import sys

from worker.contract.pipe import ReadyEvent, parse_event

#: The trainer as a supervisor with process id 1 sees it, as in a container without an init. Its
#: libraries talk on stdout, as soon as they are imported and later.
PROGRAM = """
import os
import runpy
import sys

class Talkative:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("a library talks at import", flush=True)
            os.write(1, b"so does one in C\\n")
        if name == "worker.training.service":
            from worker.training import result
            versions = result.versions

            def talking():
                print("a library talks later", flush=True)
                return versions()

            result.versions = talking

os.getppid = lambda: 1
sys.meta_path.insert(0, Talkative())
end = os._exit
os._exit = lambda status: end(9 if "botocore" in sys.modules else status)
runpy.run_module("worker.training", run_name="__main__")
"""


def test_a_trainer_serves_a_supervisor_with_process_id_1_and_ends_with_its_input():
    """And has not loaded what only the supervisor needs."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr.decode()
    [line] = answer.stdout.splitlines()
    assert isinstance(parse_event(line), ReadyEvent)
    for said in (b"talks at import", b"so does one in C", b"talks later"):
        assert said in answer.stderr
