"""Everything that a resume needs, in one file that is either whole or not there."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from worker.contract.parameters import TrainingParameters
from worker.training.environment import differences
from worker.training.step import Trainee
from worker.training.validation import Validation

_HEADER = "lora_worker"

#: What names of previews begin with; step and place follow.
_ALONG = "along."

#: What the header must say.
_SAID = {"step", "belongs_to", "made_in", "inexactly", "scaler", "validation"}


class CheckpointUnusable(Exception):  # noqa: N818 - a finding, not a malfunction
    """The file does not fit this job; the text says why."""


def fingerprint(
    parameters: TrainingParameters,
    seed: int,
    pictures: tuple[str, ...],
    captions: tuple[str, ...],
    base_model: str,
) -> str:
    """Digest of what a checkpoint belongs to: data, parameters, seed and base model."""
    content = json.dumps(
        [parameters.model_dump(mode="json"), seed, pictures, captions, base_model], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()


def save_checkpoint(
    trainee: Trainee,
    folder: Path,
    *,
    belongs_to: str,
    made_in: Mapping[str, str],
    inexactly: Sequence[str] = (),
) -> Path:
    """Write the state after `trainee.step` steps; older files in `folder` go last.

    A temporary file is flushed to the disk and renamed, so that a crash leaves the old one whole.

    Args:
        trainee: what to store.
        folder: made if it does not exist.
        belongs_to: the job's `fingerprint`.
        made_in: this `environment`.
        inexactly: what was not the same where the training went on before; it stays so.
    """
    tensors = {f"adapter.{name}": weight.detach() for name, weight in trainee.weights.items()}
    state = trainee.optimizer.state_dict()["state"]
    for index, moments in state.items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    tensors |= {"losses": trainee.losses, "rates": trainee.rates}
    best = trainee.validation.best_weights
    tensors |= {f"best.{name}": weight for name, weight in best.items()}
    tensors |= {
        f"{_ALONG}{step}.{place}": torch.frombuffer(bytearray(png), dtype=torch.uint8)
        for step, pictures in trainee.along.items()
        for place, png in pictures.items()
    }
    header = {
        "step": trainee.step,
        "belongs_to": belongs_to,
        "made_in": dict(made_in),
        "inexactly": list(inexactly),
        "scaler": trainee.accelerator.scaler.state_dict() if trainee.accelerator.scaler else None,
        "validation": trainee.validation.points,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{trainee.step:08d}.safetensors"
    temporary = path.with_suffix(".tmp")
    body = safetensors.torch.save(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
        metadata={_HEADER: json.dumps(header)},
    )
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _flush_folder(folder)
    for old in folder.glob("step-*.safetensors"):
        if old != path:
            old.unlink()
    return path


def load_checkpoint(
    trainee: Trainee, path: Path, *, belongs_to: str, made_in: Mapping[str, str]
) -> list[str]:
    """Put the state of `path` into `trainee`.

    Returns:
        What is, or was at an earlier resume, not the same as where the training had begun, each in
        a few words. With nothing in it the training will end bit-identical to one that was never
        interrupted.

    Raises:
        CheckpointUnusable: the file is damaged, or of another job; `trainee` is as before.
    """
    header, tensors = _read(path)
    if header["belongs_to"] != belongs_to:
        raise CheckpointUnusable("it was made with other pictures or parameters")
    _refuse_incomplete(trainee, tensors)
    trainee.put({name: tensors[f"adapter.{name}"] for name in trainee.weights})
    optimizer = trainee.optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    trainee.optimizer.load_state_dict({**optimizer, "state": state})
    if header["scaler"] and trainee.accelerator.scaler:
        trainee.accelerator.scaler.load_state_dict(header["scaler"])
    trainee.losses.copy_(tensors["losses"])
    trainee.rates.copy_(tensors["rates"])
    trainee.step = int(header["step"])
    best = {name: tensors.get(f"best.{name}") for name in trainee.weights}
    device = trainee.losses.device
    trainee.validation = Validation(
        points=[(int(step), float(loss)) for step, loss in header["validation"]],
        best_weights={name: one.to(device) for name, one in best.items() if one is not None},
    )
    trainee.along = _pictures(tensors)
    return list(dict.fromkeys([*header["inexactly"], *differences(header["made_in"], made_in)]))


def made_in(path: Path) -> dict[str, str]:
    """The environment that a checkpoint was made in. Raises `CheckpointUnusable`."""
    header, _ = _read(path)
    return dict(header["made_in"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointUnusable(f"the file cannot be read ({type(error).__name__})") from error
    if not isinstance(header, dict) or not header.keys() >= _SAID:
        raise CheckpointUnusable("its header is not complete")
    return header, tensors


def _pictures(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[int, bytes]]:
    """The previews that were drawn along the way."""
    found: dict[int, dict[int, bytes]] = {}
    for name, content in tensors.items():
        if name.startswith(_ALONG):
            step, place = map(int, name.removeprefix(_ALONG).split("."))
            found.setdefault(step, {})[place] = content.numpy().tobytes()
    return found


def _refuse_incomplete(trainee: Trainee, tensors: Mapping[str, torch.Tensor]) -> None:
    """Every tensor must be there in its shape: a smaller one would be spread out in silence."""
    wanted = {f"adapter.{name}": weight.shape for name, weight in trainee.weights.items()}
    wanted |= {"losses": trainee.losses.shape, "rates": trainee.rates.shape}
    moments = {
        f"optimizer.{index}.{key}": shape
        for index, shapes in trainee.optimizer.optimizer.state_shapes().items()
        for key, shape in shapes.items()
    }
    best = {f"best.{name}": weight.shape for name, weight in trainee.weights.items()}
    found = {n: tensor.shape for n, tensor in tensors.items() if not n.startswith(_ALONG)}
    # Before the first step that was not skipped, there may be no state at all; and the best adapter
    # is kept where there is one.
    if found not in (wanted, wanted | moments, wanted | best, wanted | moments | best):
        raise CheckpointUnusable("it does not hold the adapter and optimizer of this job")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
