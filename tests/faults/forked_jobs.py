"""Short jobs of the real trainer in processes of their own, to be killed and gone on with.

Importing the libraries takes seconds, and here are a hundred processes. So they are forked from one
that has imported everything, loaded the base model, and has a single thread: there is no lock that
a child could inherit from a thread that it does not have. The product spawns: its trainer has
trained, has threads, and may hold a GPU, which no fork survives.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from tqdm import tqdm

from tests.faults.failpoints import Failpoints, Fault
from tests.faults.trainer_seams import install
from tests.fixtures.drawn_pictures import draw_pictures
from tests.json_lines import json_lines
from worker.contract.base_model import BaseModelEntry
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import FinishedEvent, ImageFile, TrainCommand
from worker.demo.tiny_base_model import make_base_model
from worker.training.base_model import BaseModelShelf
from worker.training.device import arithmetic_for
from worker.training.job import run_job

CPU = torch.device("cpu")

#: Accumulation with a shorter last group, a schedule with warm-up, dropout, mirrored pictures,
#: captions left out: all that a resume must get right.
RULES = {
    "max_train_steps": 6,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "learning_rate": 1e-3,
    "lora_dropout": 0.1,
    "random_flip": True,
    "caption_dropout_rate": 0.2,
    "resolution": 64,
    "validation_prompts": [],
}


@dataclass(frozen=True)
class Attempt:
    """What became of one process.

    Attributes:
        killed: whether it ended by SIGKILL.
        steps: optimizer steps that it did.
        sha256: of the adapter file, if it finished. metadata: of the result, if it finished.
    """

    killed: bool
    steps: int
    sha256: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """Where the jobs run: the base model, warm; pictures; a folder for everything they write."""

    base_model: BaseModelEntry
    shelf: BaseModelShelf
    pictures: tuple[Path, ...]
    folder: Path


def new_site(folder: Path) -> Site:
    """A base model and three pictures, which make a group of two and one of one."""
    folder.mkdir(parents=True, exist_ok=True)
    tqdm.monitor_interval = 0  # a progress bar would leave a thread
    wait_for(fork(lambda: make_base_model(folder / "model")))
    entry, shelf = BaseModelEntry(name="tiny", location=str(folder / "model")), BaseModelShelf()
    shelf.get(entry, arithmetic_for("no", CPU))
    pictures = draw_pictures(folder / "pictures", 3, size=64)
    return Site(entry, shelf, tuple(pictures), folder)


def fork(do: Callable[[], object]) -> int:
    """Do it in a process of its own; returns its id."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"this process has {threads} threads: a child could hang on their locks")
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        do()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> int:
    """How the process ended: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(
    site: Site,
    name: str,
    *,
    precision: str,
    checkpoint_seconds: int,
    kill: str | None = None,
    resume_from: Path | None = None,
    seed: int = 7,
    threads: int = 1,
) -> Attempt:
    """Run the job in a process of its own, in the folder `name`."""
    folder = site.folder / name
    folder.mkdir(parents=True)
    journal, result = folder / "points.jsonl", folder / "result.json"
    order = _order(site, folder, precision, checkpoint_seconds, seed, resume_from)

    def train() -> None:
        torch.set_num_threads(threads)
        install(Failpoints("trainer", _fault(kill) if kill else None, folder))
        ended = run_job(
            order,
            site.shelf,
            CPU,
            report=lambda event: None,
            should_stop=lambda: None,
        )
        result.write_bytes(ended.line())

    status = wait_for(fork(train))
    steps = sum((row["point"], row["side"]) == ("step", "after") for row in json_lines(journal))
    if status == -signal.SIGKILL:
        return Attempt(killed=True, steps=steps)
    if status != 0:
        raise RuntimeError(f"the job {name} ended with exit status {status}")
    finished = FinishedEvent.model_validate_json(result.read_bytes())
    return Attempt(False, steps, finished.files[0].sha256, finished.metadata)


def newest_checkpoint(site: Site, name: str) -> Path | None:
    """The newest whole checkpoint file that the job in the folder `name` has left."""
    return max((site.folder / name / "checkpoints").glob("step-*.safetensors"), default=None)


def with_moments_zeroed(path: Path) -> Path:
    """A copy of a checkpoint that is whole and says nothing of the gradients before it."""
    with safetensors.safe_open(path, framework="pt") as file:
        said = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    for name, tensor in tensors.items():
        if ".exp_avg" in name:
            tensor.zero_()
    copy = path.with_name("zeroed.safetensors")
    safetensors.torch.save_file(tensors, copy, metadata=said)
    return copy


def _fault(kill: str) -> Fault:
    """From `before:step:3`."""
    side, point, n = kill.split(":")
    return Fault("trainer", "kill", "before" if side == "before" else "after", point, int(n))


def _order(
    site: Site,
    folder: Path,
    precision: str,
    checkpoint_seconds: int,
    seed: int,
    resume_from: Path | None,
) -> TrainCommand:
    rules = TrainingParameters.model_validate({**RULES, "mixed_precision": precision})
    return TrainCommand(
        job_id="bit-exact",
        style_id=1,
        # 0 is after every step; a message may not ask for it.
        parameters=rules.model_copy(update={"checkpoint_seconds": checkpoint_seconds}),
        seed=seed,
        base_model=site.base_model,
        images=[
            ImageFile(index=index, path=str(path), source=path.name, caption=f"shape {index}")
            for index, path in enumerate(site.pictures)
        ],
        output_dir=str(folder / "out"),
        checkpoint_dir=str(folder / "checkpoints"),
        resume_from=str(resume_from) if resume_from else None,
    )
