"""The receiver that the demo and the compose file run."""

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import requests

from worker.demo.receiver import Receiver


def test_the_journal_has_everything_in_memory_and_in_a_file(tmp_path: Path) -> None:
    with Receiver(journal_file=tmp_path / "journal.jsonl") as receiver:
        for number in range(3):
            requests.patch(
                f"{receiver.url}/api/webhooks/training/progress",
                json={"n": number},
                headers={"Authorization": "Bearer token-of-the-test"},
                timeout=10,
            )
        requests.post(f"{receiver.url}/x", data=b"not json", timeout=10)
        assert requests.get(f"{receiver.url}/health", timeout=10).text == "ok"
        assert [r.json for r in receiver.journal] == [{"n": 0}, {"n": 1}, {"n": 2}, None]
        times = [r.monotonic_seconds for r in receiver.journal]
        assert times == sorted(times)
    text = (tmp_path / "journal.jsonl").read_text()
    assert "token-of-the-test" not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["json"] for row in rows] == [{"n": 0}, {"n": 1}, {"n": 2}, None]


def test_it_runs_alone_and_prints_one_line_an_event() -> None:
    command = [sys.executable, "-m", "worker.demo.receiver", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            requests.post(f"{url}/api/webhooks/training/failed", json={"a": 1}, timeout=10)
            line = process.stdout.readline()
        finally:
            process.terminate()
    assert line == 'POST /api/webhooks/training/failed 200 {"a": 1}\n'


def test_a_crowd_that_knocks_at_once_is_let_in() -> None:
    # Not serving yet: whoever gets in waits in the queue. Others would wait for TCP to try again.
    receiver = Receiver()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            knock = socket.create_connection(("127.0.0.1", receiver.port), timeout=2)
            stack.enter_context(knock)
        stack.enter_context(receiver)
        knock.sendall(b"GET /health HTTP/1.1\r\nHost: receiver\r\n\r\n")
        assert knock.recv(100).startswith(b"HTTP/1.1 200")
