"""The fault campaign's own trainer: it is the real one, and dies where it is told."""

import os
import sys
from pathlib import Path

import pytest

from tests.faults.failpoints import Fault
from tests.json_lines import json_lines
from tests.unit.training.builders import command
from worker.contract.pipe import FinishedEvent
from worker.jobs.devices import Share
from worker.jobs.trainer_process import TrainerDied, TrainerProcess
from worker.jobs.trainer_start import trainer_environment

#: How often a job of two pictures and three steps passes each point, with a checkpoint after every
#: step but the last.
PASSAGES = {
    **{"command": 1, "base-model": 1, "picture": 2, "encode": 2, "step": 3},
    **{"checkpoint-half": 2, "checkpoint-write": 2, "checkpoint-rename": 2},
    **{"checkpoint-delete": 1, "checkpoint-event": 2},
    **{"export": 1, "verify": 1, "file": 6, "finished-event": 1},
}


def train(order, folder: Path, fault: Fault | None = None):
    trainer = TrainerProcess(
        trainer_environment(os.environ, share=Share(None), allow_hub=False),
        command=(
            *(sys.executable, "-m", "tests.faults.real_trainer"),
            *("--checkpoint-seconds", "0", str(folder), fault.text() if fault else ""),
        ),
    )
    try:
        trainer.wait_ready(120)
        return trainer.train(
            order, lambda event: None, should_stop=lambda: None, time_limit_seconds=120
        )
    finally:
        trainer.close(30)


def read(journal: Path) -> list[tuple[str, str, int]]:
    return [(row["side"], row["point"], row["n"]) for row in json_lines(journal)]


def test_a_traced_job_passes_every_point_and_finishes(tiny_base_model, pictures, tmp_path):
    order = command(tiny_base_model, pictures[:2], tmp_path, max_train_steps=3)
    ended = train(order, tmp_path)
    assert isinstance(ended, FinishedEvent)
    passed = read(tmp_path / "points.jsonl")
    assert len(passed) == len(set(passed))
    assert set(passed) == {
        (side, point, n)
        for point, count in PASSAGES.items()
        for n in range(1, count + 1)
        for side in ("before", "after")
    }


def test_a_trainer_dies_at_the_point_it_is_told_and_passes_no_other(
    tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures[:2], tmp_path, max_train_steps=3)
    fault = Fault("trainer", "kill", "before", "checkpoint-rename", 2)
    with pytest.raises(TrainerDied, match="SIGKILL"):
        train(order, tmp_path, fault)
    assert read(tmp_path / "points.jsonl")[-1] == ("before", "checkpoint-rename", 2)
    left = sorted(path.name for path in Path(order.checkpoint_dir).iterdir())
    assert left == ["step-00000001.safetensors", "step-00000002.tmp"]
