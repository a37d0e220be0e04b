"""Every command of the documentation runs as it stands there, or says why it is not run."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import TREATMENTS, NotRun, Run, RunBy, commands
from tests.docs.pages import TOP
from tests.live_worker import eventually

COMMANDS = commands()


@pytest.fixture
def folder(site, tmp_path) -> Path:
    """Where a person who follows the pages stands: a job, pictures, the virtual environment."""
    here = tmp_path / "here"
    (here / "my-pictures").mkdir(parents=True)
    (here / "job.json").write_text(json.dumps(site.message()))
    (here / ".venv" / "bin").mkdir(parents=True)
    for name in ("lora-worker", "python"):
        (here / ".venv" / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    return here


@pytest.fixture
def environment(site, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return site.environment(PATH=path, PYTHONPATH=str(TOP), PYTHONUNBUFFERED="1")


def test_the_pages_have_commands_and_every_one_is_treated():
    assert len(COMMANDS) >= 8
    assert [str(command) for command in COMMANDS if command.treatment is None] == []


def test_every_row_is_for_some_command():
    used = {id(command.treatment) for command in COMMANDS}
    assert [pattern for pattern, row in TREATMENTS.items() if id(row) not in used] == []


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if isinstance(c.treatment, RunBy)], ids=str
)
def test_what_is_run_elsewhere_is_run_there(command):
    assert command.treatment.words in (TOP / command.treatment.file).read_text()


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if isinstance(c.treatment, NotRun)], ids=str
)
def test_what_is_not_run_says_what_it_needs_and_names_the_test_that_stands_in(command):
    reason = command.treatment.reason
    named = [word for word in reason.split() if word.startswith("tests/")]
    assert named
    assert all((TOP / name).is_file() for name in named), reason


def run(command, folder, environment):
    """The command in a shell; its answer, or what it said until it was stopped."""
    treatment, text = command.treatment, command.text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for word, other in treatment.stands_in.items():
        assert word in text
        text = text.replace(word, other.format(port=port))
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"exec {text}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if treatment.serves:
            eventually(lambda: answers(port), f"{text} answers")
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    return process.returncode, said


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def runnable(trains):
    rows = [c for c in COMMANDS if isinstance(c.treatment, Run) and c.treatment.trains == trains]
    return pytest.mark.parametrize("command", rows, ids=str)


@runnable(trains=False)
def test_it_runs_with_a_worker_behind_it(command, site, folder, environment):
    with site.worker():
        status, said = run(command, folder, environment)
    assert status == 0, said
    assert command.treatment.says in said


@runnable(trains=True)
def test_it_trains(command, folder, environment, tiny_base_model, pictures):
    """For real; the catalogue's model is a small one, trained at 64 pixels."""
    catalogue = folder / "base_models.toml"
    catalogue.write_text(
        f'[tiny]\nlocation = "{tiny_base_model}"\nfamily = "sd1"\nresolution = 64\n'
    )
    (folder / "my-pictures" / pictures[0].name).write_bytes(pictures[0].read_bytes())
    status, said = run(command, folder, {**environment, "BASE_MODELS_FILE": str(catalogue)})
    assert status == 0, said
    assert command.treatment.says in said
    assert (folder / "my-style" / "lora_weights.safetensors").stat().st_size > 0
