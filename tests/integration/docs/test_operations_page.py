"""Somebody new on call answers every question from the one page, with the commands on it.

Each command of the table "On one page" is run against a live worker with a job in training, one
that failed and one whose receiver did not listen.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.docs.pages import read
from tests.integration.worker.test_status import OUT_OF_MEMORY
from tests.live_worker import PATIENCE_SECONDS, LiveWorker, Site, eventually
from worker.demo.receiver import Reply

RUNNING, FAILED, UNHEARD = "now-training", "has-failed", "not-heard"


def commands_on_the_page():
    """As they stand in the table, `X` for a job's id."""
    section = read("docs/operations.md").partition("## On one page")[2].partition("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    return re.findall(r"`lora-worker ([^`]+)`", table)


@dataclass
class Shift:
    """A night's worker, and the shell of whoever is on call."""

    site: Site
    worker: LiveWorker
    environment: dict[str, str]
    asked: list[str]

    def ask(self, command, job_id="", status=0):
        """Run a command of the page; what it says."""
        self.asked.append(command)
        words = [job_id if word == "X" else word for word in command.split()]
        answer = subprocess.run(
            [sys.executable, "-m", "worker.cli", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert answer.returncode == status, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout


@pytest.fixture
def shift(site, free_port):
    """One job that failed, one event that nobody took, one job in training."""
    settings = {"HTTP_PORT": str(free_port), "RABBITMQ_QUEUE_TYPE": "classic"}
    with site.worker(**settings) as worker:
        site.receiver.respond = lambda request: Reply(status=404)
        site.publish(site.message(UNHEARD))
        eventually(lambda: site.queue_sizes("model_training.events.dead") == [1])
        site.receiver.respond = lambda request: Reply()
        site.publish(site.message(FAILED, style_id=OUT_OF_MEMORY))
        site.wait_for_end(FAILED)
        eventually(lambda: site.queue_sizes("model_training.dead") == [1])
        site.publish(site.message(RUNNING, parameters={"max_train_steps": 50_000}))
        worker.wait_for_log("stage_started", stage="training", job_id=RUNNING)
        yield Shift(site, worker, site.environment(**settings), [])


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_newcomer_answers_every_question_with_the_commands_of_the_page(shift):
    site = shift.site

    # Is it alive? Does it take jobs?
    shift.ask("health")
    shift.ask("health --ready")

    # What is it doing?
    told = shift.ask("status")
    assert RUNNING in told
    assert FAILED in told

    # Where is job X?
    assert json.loads(shift.ask("jobs show X", RUNNING))["state"] == "training"
    assert json.loads(shift.ask("jobs show X", FAILED))["state"] == "failed"

    # What failed, and why?
    assert shift.ask("dead list").startswith(f"{FAILED}\tGPU_OUT_OF_MEMORY\t")
    shown = json.loads(shift.ask("dead show X", FAILED))
    assert shown["headers"]["x-lora-message"]
    assert json.loads(shown["body"])["job_id"] == FAILED

    # A sender was not told.
    assert shift.ask("events list").startswith(f"{UNHEARD}\tcomplete\t")
    shift.ask("events replay X", UNHEARD)
    assert site.wait_for_end(UNHEARD).event == "complete"
    eventually(
        lambda: sum(e.event == "complete" for e in site.journal(UNHEARD)) >= 2, "told at last"
    )

    # Stop a job.
    shift.ask("cancel X", RUNNING)
    assert site.wait_for_end(RUNNING).json["error_code"] == "CANCELED"

    # How do I replay it?
    replayed = shift.ask("dead replay X", FAILED)
    new_id = re.search(rf"{FAILED} is published as (\S+)", replayed)[1]
    assert site.wait_for_end(new_id).json["style_id"] == OUT_OF_MEMORY

    # Is everything set up right? This machine has no GPU, which `doctor` says.
    findings = shift.ask("doctor")
    assert "store" in findings

    assert set(shift.asked) == set(commands_on_the_page())
