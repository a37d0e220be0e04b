"""What strangers wrote is shown to whoever is on call, and commands neither person nor terminal."""

import pytest

from worker.cli.outcome import row
from worker.jobs.control import ControlListener, RunningJobs


@pytest.mark.parametrize(
    "evil",
    ["\x1b[2J\x1b]0;pwned\x07", "two\nlines", "a\tb", "\x9b31m", "\u202egpj.exe", "\ud800", "\r"],
)
def test_a_row_is_one_line_of_printable_fields(evil):
    line = row("job-1", evil, 7)
    assert line.count("\t") == 2
    assert all(field.isprintable() for field in line.split("\t"))
    line.encode()


def test_a_field_has_an_end():
    assert len(row("x" * 1_000_000)) <= 2000


@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000, b'{"cancel": 7}', b"\xff"])
def test_a_control_message_that_is_none_is_forgotten(body, mocker):
    ControlListener(RunningJobs()).handle(mocker.Mock(body=body))
