"""What one end of the pipe writes, the other reads."""

import pytest
from pydantic import ValidationError

from worker.contract.pipe import (
    FailedEvent,
    StopCommand,
    TrainCommand,
    parse_command,
    parse_event,
)


def test_a_command_survives_the_pipe_with_its_parameters():
    command = TrainCommand(
        job_id="j",
        style_id=1,
        parameters={"epochs": 3, "lora_rank": 8, "seed": 2**62 + 1},
        seed=2**63 - 1,
        base_model={"name": "tiny", "location": "/x"},
        images=[{"index": 0, "path": "/x/0", "source": "s3://b/ä\n.jpg", "caption": "“c”"}],
        output_dir="/o",
        checkpoint_dir="/c",
    )
    line = command.line()
    assert line.count(b"\n") == 1
    assert parse_command(line) == command
    assert parse_command(StopCommand(reason="drain").line()) == StopCommand(reason="drain")


def test_an_event_survives_the_pipe():
    event = FailedEvent(code="INVALID_IMAGE", message="two\nlines")
    assert event.line().count(b"\n") == 1
    assert parse_event(event.line()) == event


@pytest.mark.parametrize("line", [b"", b"Loading weights: 100%", b'{"type": "hello"}', b"{"])
def test_a_line_that_is_not_of_the_protocol_is_refused(line):
    with pytest.raises(ValidationError):
        parse_event(line)
    with pytest.raises(ValidationError):
        parse_command(line)
