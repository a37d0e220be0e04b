"""Two processes train one job as one process would. On the CPU they speak over gloo."""

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import structlog

from tests.live_worker import eventually
from tests.unit.training.builders import command, largest_difference, run
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import (
    FinishedEvent,
    StepEvent,
    StopCommand,
    StoppedEvent,
)
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerDied, TrainerProcess
from worker.jobs.trainer_slot import TrainerSlot
from worker.jobs.trainer_start import trainer_command, trainer_environment

#: Long enough for a loaded machine to import torch three times.
START_SECONDS = 240

TWO = Share(None, processes=2)

RULES = {"train_batch_size": 2, "lora_dropout": 0, "max_train_steps": 4}


@pytest.fixture(scope="module")
def slot():
    """A trainer of two processes, warm from test to test unless it fails."""
    slot = TrainerSlot(
        share=TWO,
        allow_hub=False,
        max_jobs=50,
        start_timeout_seconds=START_SECONDS,
        command=(*trainer_command(2)[:-1], "tests.unit.training.two_processes"),
    )
    yield slot
    slot.close()


def train(slot, order, *, stop_at=None):
    """How the job ended, and what was said; drained at the first event of type `stop_at`."""
    events = []

    def should_stop():
        told = stop_at and any(isinstance(event, stop_at) for event in events)
        return StopCommand(reason="drain") if told else None

    try:
        ended = slot.trainer().train(
            order, events.append, should_stop=should_stop, time_limit_seconds=240
        )
    finally:
        slot.recycle()
    return ended, events


def adapter(ended):
    return safetensors.torch.load_file(ended.files[0].path)


def losses(ended):
    [path] = [file.path for file in ended.files if file.name == "metrics.jsonl"]
    rows = map(json.loads, Path(path).read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"train_text_encoder": True, "optimizer": "adafactor"},
        {"use_dora": True, "adam_epsilon": 1e-4},
    ],
)
def test_two_processes_give_the_losses_and_the_weights_of_one_with_a_batch_of_two(
    slot, tiny_base_model, pictures, tmp_path, more
):
    rules = RULES | more
    two, _ = train(slot, command(tiny_base_model, pictures, tmp_path / "two", **rules))
    one, _ = run(command(tiny_base_model, pictures, tmp_path / "one", **rules))
    assert isinstance(two, FinishedEvent)
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert largest_difference(adapter(two), adapter(one)) < 1e-6


def test_dropout_and_a_short_last_group_do_not_depend_on_who_passes_a_sample(
    slot, tiny_base_model, pictures, tmp_path
):
    """Three pictures in groups of two: in the second step one process has nothing to pass."""
    rules = {"lora_dropout": 0.1, "max_train_steps": 4, "gradient_accumulation_steps": 2}
    three = pictures[:3]
    two, _ = train(slot, command(tiny_base_model, three, tmp_path / "two", **rules))
    one, _ = run(command(tiny_base_model, three, tmp_path / "one", **rules))
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert largest_difference(adapter(two), adapter(one)) < 1e-6


def test_a_job_of_two_processes_stops_together_and_resumes_bit_for_bit(
    slot, tiny_base_model, pictures, tmp_path
):
    def order(name, **fields):
        rules = {**RULES, "max_train_steps": 12}
        return command(tiny_base_model, pictures, tmp_path / name, **rules, **fields)

    whole, _ = train(slot, order("whole"))
    stopped, _ = train(slot, order("half"), stop_at=StepEvent)
    assert isinstance(stopped, StoppedEvent)
    assert 0 < stopped.step < 12
    resumed, _ = train(slot, order("rest", resume_from=stopped.checkpoint))
    assert resumed.metadata["resumed_at_step"] == stopped.step
    assert resumed.metadata["resumed_exactly"] is True
    assert largest_difference(adapter(resumed), adapter(whole)) == 0


def test_the_others_wait_while_the_first_process_draws_along_the_way(
    slot, tiny_base_model, pictures, tmp_path
):
    drawn = {"validation_prompts": ["a circle"], "num_validation_images": 1, "preview_points": 2}
    two, _ = train(slot, command(tiny_base_model, pictures, tmp_path / "two", **RULES, **drawn))
    without, _ = train(slot, command(tiny_base_model, pictures, tmp_path / "without", **RULES))
    [preview] = two.metadata["previews"]
    assert [picture["step"] for picture in preview["along"]] == [1, 3]
    assert largest_difference(adapter(two), adapter(without)) == 0


def test_where_one_process_is_short_of_memory_all_go_on_with_the_smaller_plan(
    slot, tiny_base_model, pictures, tmp_path
):
    rules = {**RULES, "train_batch_size": 4}
    with structlog.testing.capture_logs() as said:
        two, _ = train(slot, command(tiny_base_model, pictures, tmp_path / "two", **rules))
    one, _ = run(command(tiny_base_model, pictures, tmp_path / "one", **rules))
    smaller = [line["micro_batch"] for line in said if line["event"] == "plan_made_smaller"]
    assert smaller == [1]
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    # Four samples by themselves here, at once there: AdamW makes more of the last bit.
    assert largest_difference(adapter(two), adapter(one)) < 1e-5


def test_an_error_of_the_job_is_said_once_and_the_next_job_is_trained(
    slot, tiny_base_model, pictures, tmp_path
):
    with pytest.raises(JobError) as caught:
        train(slot, command(tiny_base_model, pictures, tmp_path / "1", target_modules=["x"]))
    assert caught.value.code is ErrorCode.INVALID_JOB
    ended, _ = train(slot, command(tiny_base_model, pictures, tmp_path / "2", **RULES))
    assert isinstance(ended, FinishedEvent)


def test_a_killed_process_is_the_end_of_the_trainer_and_of_the_other_one(
    slot, tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures, tmp_path, max_train_steps=50_000)
    first, second = processes_of(slot.trainer().pid)

    def kill(event):
        if isinstance(event, StepEvent) and event.step == 1:
            os.kill(second, signal.SIGKILL)

    with pytest.raises(TrainerDied):
        slot.trainer().train(order, kill, should_stop=lambda: None, time_limit_seconds=240)
    slot.recycle()
    eventually(lambda: not is_running(first), "the other process is gone", 20)


def test_a_trainer_of_two_processes_ends_with_its_input(tmp_path):
    trainer = TrainerProcess(
        trainer_environment(os.environ, share=TWO, allow_hub=False), command=trainer_command(2)
    )
    trainer.wait_ready(START_SECONDS)
    pids = processes_of(trainer.pid)
    trainer.close(60)
    assert trainer._child.returncode == 0
    assert not any(is_running(pid) for pid in pids)


def processes_of(launcher):
    """Process ids of the trainer's processes, in the order of their ranks."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and parent_of(folder) == launcher:
            environment = (folder / "environ").read_bytes().split(b"\0")
            ranks = [one for one in environment if one.startswith(b"RANK=")]
            found |= {int(rank[5:]): int(folder.name) for rank in ranks}
    return [found[rank] for rank in sorted(found)]


def parent_of(folder):
    try:
        return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
