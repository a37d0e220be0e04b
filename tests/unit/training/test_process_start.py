"""How the trainer process begins, and ends when nobody is there."""

import subprocess
import sys

from worker.contract.pipe import ReadyEvent, parse_event

#: The service as a supervisor with process id 1 sees it, as in a container without an init. Its
#: libraries talk on stdout.
PROGRAM = """
import os
import sys
from worker.training import service

os.getppid = lambda: 1
versions = service.versions

def talkative():
    print("a library talks", flush=True)
    os.write(1, b"so does one in C\\n")
    return versions()

service.versions = talkative
service.main()
"""


def test_a_trainer_serves_a_supervisor_with_process_id_1_and_ends_with_its_input():
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr.decode()
    [line] = answer.stdout.splitlines()
    assert isinstance(parse_event(line), ReadyEvent)
    assert b"a library talks" in answer.stderr
    assert b"so does one in C" in answer.stderr
