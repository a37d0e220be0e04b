"""A checkpoint is whole and of this job, or it is not used, and a crash leaves the one before."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tests.unit.training.builders import build, command, largest_difference, run, weights_of
from worker.contract.pipe import LogEvent
from worker.training import checkpoint
from worker.training.checkpoint import CheckpointUnusable, load_checkpoint, save_checkpoint
from worker.training.step import optimizer_step

FITS = {"belongs_to": "this job", "made_in": {"device": "CPU"}}


@pytest.fixture
def trainee(tiny_base_model, pictures, tmp_path):
    """An adapter after two steps."""
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path / "job"))
    for _ in range(2):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    return trainee


@pytest.fixture
def other(tiny_base_model, pictures, tmp_path):
    """The same job in another process: a fresh adapter."""
    return build(command(tiny_base_model, pictures[:2], tmp_path / "job"))[1]


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return (
            json.loads(file.metadata()["lora_worker"]),
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
        )


def written(path: Path, header: dict, tensors: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file(tensors, path, metadata={"lora_worker": json.dumps(header)})
    return path


def test_a_checkpoint_gives_back_every_part_of_the_state(trainee, other, tmp_path):
    assert largest_difference(weights_of(trainee), weights_of(other)) > 0
    made = save_checkpoint(trainee, tmp_path / "made", **FITS)
    assert load_checkpoint(other, made, **FITS) == []
    assert largest_difference(weights_of(trainee), weights_of(other)) == 0
    assert other.step == 2
    before, after = (one.optimizer.state_dict()["state"] for one in (trainee, other))
    assert before.keys() == after.keys() != set()
    for index in before:
        assert before[index].keys() == after[index].keys()
        assert all(torch.equal(before[index][key], after[index][key]) for key in before[index])


def test_a_checkpoint_before_the_first_step_has_no_moments_and_is_whole(other, trainee, tmp_path):
    assert load_checkpoint(trainee, save_checkpoint(other, tmp_path, **FITS), **FITS) == []
    assert trainee.step == 0


@pytest.mark.parametrize("lost", ["adapter.", "optimizer.5.exp_avg", "losses", "rates"])
def test_a_checkpoint_that_lacks_a_part_is_not_used_and_changes_nothing(
    trainee, other, tmp_path, lost
):
    header, tensors = read(save_checkpoint(trainee, tmp_path, **FITS))
    name = next(name for name in tensors if name.startswith(lost))
    del tensors[name]
    start = weights_of(other)
    with pytest.raises(CheckpointUnusable, match="does not hold"):
        load_checkpoint(other, written(tmp_path / "lacking", header, tensors), **FITS)
    assert largest_difference(start, weights_of(other)) == 0
    assert other.step == 0


def test_a_weight_of_another_shape_is_not_spread_out_in_silence(trainee, other, tmp_path):
    header, tensors = read(save_checkpoint(trainee, tmp_path, **FITS))
    name = next(name for name in tensors if name.startswith("adapter."))
    tensors[name] = tensors[name][:1].clone()
    with pytest.raises(CheckpointUnusable, match="does not hold"):
        load_checkpoint(other, written(tmp_path / "small", header, tensors), **FITS)


@pytest.mark.parametrize(
    "lost", ["step", "belongs_to", "made_in", "inexactly", "scaler", "validation"]
)
def test_a_header_that_lacks_something_is_not_used(trainee, other, tmp_path, lost):
    header, tensors = read(save_checkpoint(trainee, tmp_path, **FITS))
    del header[lost]
    with pytest.raises(CheckpointUnusable, match="header"):
        load_checkpoint(other, written(tmp_path / "lacking", header, tensors), **FITS)


def test_a_crash_while_it_is_written_leaves_the_one_before_whole(trainee, other, tmp_path, mocker):
    first = save_checkpoint(trainee, tmp_path, **FITS)
    trainee.step = 3
    mocker.patch.object(checkpoint.os, "fsync", side_effect=OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        save_checkpoint(trainee, tmp_path, **FITS)
    assert list(tmp_path.glob("*.safetensors")) == [first]
    assert load_checkpoint(other, first, **FITS) == []
    assert other.step == 2


def test_the_old_checkpoint_goes_only_after_the_new_one_is_on_the_disk(trainee, tmp_path, mocker):
    order: list[str] = []
    flush, unlink = checkpoint.os.fsync, Path.unlink

    def flushed(handle: int) -> None:
        order.append("flush")
        flush(handle)

    def unlinked(path: Path) -> None:
        order.append(f"delete {path.name}")
        unlink(path)

    save_checkpoint(trainee, tmp_path, **FITS)
    trainee.step = 3
    mocker.patch.object(checkpoint.os, "fsync", flushed)
    mocker.patch.object(Path, "unlink", unlinked)
    save_checkpoint(trainee, tmp_path, **FITS)
    assert order == ["flush", "flush", "delete step-00000002.safetensors"]


def test_another_environment_resumes_and_says_that_it_is_not_exact(
    tiny_base_model, pictures, tmp_path
):
    stopped, _ = run(command(tiny_base_model, pictures, tmp_path / "a"), stop_after=3)
    header, tensors = read(Path(stopped.checkpoint))
    header["made_in"] |= {"torch": "1.0", "device": "a GPU"}
    moved = written(tmp_path / "moved.safetensors", header, tensors)
    order = command(tiny_base_model, pictures, tmp_path / "b", resume_from=str(moved))
    ended, events = run(order)
    assert ended.metadata["resumed"]
    assert ended.metadata["resumed_at_step"] == 3
    assert ended.metadata["resumed_exactly"] is False
    because = f"device: CPU here, a GPU before; torch: {torch.__version__} here, 1.0 before"
    assert ended.metadata["resumed_inexactly_because"] == because
    [said] = [e.fields for e in events if isinstance(e, LogEvent) and e.event == "training_resumed"]
    assert said["resumed_inexactly_because"] == because


@pytest.fixture
def threads():
    """Sets the number of threads, which is as it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_another_number_of_threads_is_said_and_is_not_forgotten_at_the_next_resume(
    tiny_base_model, pictures, tmp_path, threads
):
    """A CPU sums in another order then; going on as before does not undo that."""

    def job(folder, resume_from=None):
        return command(tiny_base_model, pictures, tmp_path / folder, resume_from=resume_from)

    threads(1)
    first, _ = run(job("a"), stop_after=2)
    threads(2)
    second, _ = run(job("b", first.checkpoint), stop_after=2)
    assert second.step == 4
    ended, _ = run(job("c", second.checkpoint))
    assert ended.metadata["resumed_at_step"] == 4
    assert ended.metadata["resumed_exactly"] is False
    because = ended.metadata["resumed_inexactly_because"]
    assert because == "number of threads: 2 here, 1 before"


def metrics(order) -> list[dict]:
    text = (Path(order.output_dir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if '"loss"' in line]


def test_the_metrics_of_a_resumed_job_are_those_of_one_that_ran_through(
    tiny_base_model, pictures, tmp_path
):
    def job(name, **more):
        rules = {"lr_scheduler": "linear", "lr_warmup_steps": 2, "learning_rate": 1e-3}
        return command(tiny_base_model, pictures, tmp_path / name, **rules, **more)

    whole = job("whole")
    run(whole)
    stopped, _ = run(job("stopped"), stop_after=4)
    resumed = job("resumed", resume_from=stopped.checkpoint)
    run(resumed)
    assert metrics(resumed) == metrics(whole)
    assert [line["step"] for line in metrics(whole) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    # Linear: up in 2 steps, then down to 0 at step 6.
    assert [line["learning_rate"] for line in metrics(whole)] == pytest.approx(
        [0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )
