"""The trainer as a process of its own, over the real pipe."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.live_worker import eventually
from tests.unit.training.builders import command
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    FinishedEvent,
    StepEvent,
    StoppedEvent,
)
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerProcess
from worker.jobs.trainer_start import trainer_environment
from worker.training.ranks import ALONE
from worker.training.service import Service


@pytest.fixture
def trainer():
    process = TrainerProcess(trainer_environment(os.environ, share=Share(None), allow_hub=False))
    process.wait_ready(120)
    yield process
    process.kill()


def train(trainer, order, on_event=lambda event: None, should_stop=lambda: None):
    return trainer.train(order, on_event, should_stop=should_stop, time_limit_seconds=120)


def test_one_warm_process_serves_job_after_job_and_survives_bad_input(
    trainer, tiny_base_model, pictures, tmp_path
):
    assert trainer.ready.device == "cpu"
    assert {"torch", "diffusers", "peft", "transformers", "accelerate"} <= set(
        trainer.ready.versions
    )
    first = train(trainer, command(tiny_base_model, pictures, tmp_path / "1"))
    assert isinstance(first, FinishedEvent)
    assert {file.name for file in first.files} == {
        *("lora_weights.safetensors", "lora_weights.kohya.safetensors"),
        *("metrics.jsonl", "README.md", "report.html", "manifest.json"),
    }
    trainer.send(b"this is not a command\n")
    with pytest.raises(JobError) as caught:
        train(trainer, command(tiny_base_model, pictures, tmp_path / "2", target_modules=["x"]))
    assert caught.value.code is ErrorCode.INVALID_JOB
    again = train(trainer, command(tiny_base_model, pictures, tmp_path / "3"))
    assert [f.sha256 for f in again.files[:2]] == [f.sha256 for f in first.files[:2]]
    trainer.close(30)
    assert trainer._child.returncode == 0


def test_sigterm_in_the_middle_leaves_a_checkpoint_and_says_so(
    trainer, tiny_base_model, pictures, tmp_path
):
    def terminate(event):
        if isinstance(event, StepEvent):
            os.kill(trainer.pid, signal.SIGTERM)

    order = command(tiny_base_model, pictures, tmp_path, max_train_steps=5000)
    ended = train(trainer, order, terminate)
    assert isinstance(ended, StoppedEvent)
    assert ended.step > 0
    assert Path(ended.checkpoint).exists()
    assert trainer._child.wait(30) == EXIT_CHECKPOINTED


def test_an_error_of_the_device_ends_the_process_since_an_end_is_tried_again(
    tiny_base_model, pictures, tmp_path, mocker
):
    ended = mocker.patch("os._exit", side_effect=SystemExit)

    def train(report):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    service = Service(io.BytesIO(), io.BytesIO(), ALONE)
    with pytest.raises(SystemExit):
        service._outcome(command(tiny_base_model, pictures, tmp_path), train)
    ended.assert_called_once_with(1)


def test_a_trainer_dies_with_its_supervisor(tmp_path):
    """Its parent is killed and cannot tidy up."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, time\n"
            "from worker.jobs.trainer_process import TrainerProcess\n"
            "trainer = TrainerProcess(dict(os.environ))\n"
            "trainer.wait_ready(120)\n"
            "print(f'pid {trainer.pid}', flush=True)\n"
            "time.sleep(600)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    said = next(line for line in parent.stdout if line.startswith("pid "))
    child = int(said.split()[1])
    parent.kill()
    parent.wait()

    def gone():
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"

    eventually(gone, "the trainer is gone", 20)
