"""How do readers see an exported file? Loaded into a fresh base as diffusers and ComfyUI do it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from worker.contract.errors import ErrorCode, JobError
from worker.training.adapter import unload_adapters
from worker.training.adapter_state import kohya_part, layers_of, weights_of
from worker.training.adapter_weights import ADAPTER
from worker.training.kohya import tuned_by_comfyui

#: Name under which a file is loaded back for the comparison.
_RELOADED = "reloaded"


@dataclass(frozen=True)
class Part:
    """A trained model and its base, and what is done with them.

    Attributes:
        path_of: the path that kohya's readers know a layer by.
        read: what diffusers finds in a file. load: puts that into the base.
        run: the output on fixed inputs.
    """

    trained: Any
    fresh: Any
    path_of: Callable[[str], str]
    read: Callable[[Path], dict[str, Any]]
    load: Callable[..., object]
    run: Callable[[Any], torch.Tensor]


def read_as_diffusers_does(part: Part, file: Path) -> tuple[str | None, torch.Tensor]:
    """In what the adapter in `file` differs from the trained one, and the output with it."""
    layers = layers_of(part.trained, ADAPTER)
    try:
        with _read_in_full_precision(part.fresh.get_parameter(f"{name}.weight") for name in layers):
            _load_as_diffusers_does(part, file)
        return _mismatch(part.trained, part.fresh), part.run(part.fresh)
    finally:
        unload_adapters(part.fresh)


def read_as_comfyui_does(part: Part, file: Path) -> tuple[str | None, torch.Tensor]:
    """The same for a kohya file with DoRA: its weights are merged into those of the base."""
    try:
        found = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _does_not_load(file, error) from error
    expected = kohya_part(part.trained, part.path_of)
    if lost := len(expected.keys() - found.keys()):
        return f"{lost} of {len(expected)} tensors are not in it", part.run(part.fresh)
    wrong = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    merged = {
        path: part.fresh.get_parameter(f"{path}.weight")
        for path in layers_of(part.trained, ADAPTER)
    }
    before = {path: weight.data for path, weight in merged.items()}
    try:
        for path, weight in merged.items():
            tuned = tuned_by_comfyui(found, part.path_of(path), weight.detach().cpu())
            weight.data = tuned.to(weight)
        output = part.run(part.fresh)
    finally:
        for path, weight in merged.items():
            weight.data = before[path]
    return (f"{wrong[0]} differs" if wrong else None), output


def _load_as_diffusers_does(part: Part, file: Path) -> None:
    """One model's half of `pipeline.load_lora_weights(file)`, without a pipeline.

    Raises:
        JobError: the file is missing, or diffusers cannot read it.
    """
    try:
        if not file.is_file():  # diffusers would take the path for a name on the model hub
            raise FileNotFoundError(file.name)
        part.load(**part.read(file), adapter_name=_RELOADED, low_cpu_mem_usage=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _does_not_load(file, error) from error
    # Loaded weights lie in the file's mapping at odd addresses, where a CPU sums in another order.
    for name, parameter in part.fresh.named_parameters():
        if f".{_RELOADED}." in name:
            if parameter.is_meta:  # diffusers leaves it so where the file lacks it
                raise _does_not_load(file, KeyError(name))
            parameter.data = parameter.data.clone()


def _does_not_load(file: Path, error: Exception) -> JobError:
    return JobError(
        ErrorCode.TRAINING_FAILED,
        f"The exported file {file.name} does not load back ({type(error).__name__}); "
        "please send the job again.",
    )


def _mismatch(trained: Any, reloaded: Any) -> str | None:
    """The first thing in which the two adapters differ, as half a sentence; none if in nothing."""
    layers, loaded = layers_of(trained, ADAPTER), layers_of(reloaded, _RELOADED)
    if layers.keys() != loaded.keys():
        lost = len(layers.keys() - loaded.keys())
        return f"{lost} of {len(layers)} layers have no adapter after loading it"
    for name, layer in layers.items():
        scaling = layer.lora_alpha[ADAPTER] / layer.r[ADAPTER]
        if loaded[name].scaling[_RELOADED] != scaling:
            found = loaded[name].scaling[_RELOADED]
            return f"layer {name} has scaling {found:g} instead of alpha / rank = {scaling:g}"
    weights = weights_of(reloaded, _RELOADED)
    for key, value in weights_of(trained, ADAPTER).items():
        if key not in weights or not torch.equal(weights[key], value):
            return f"the weights of {key.removesuffix('.weight')} differ"
    return None


@contextmanager
def _read_in_full_precision(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, `weights` are fp32 zeros that take no memory; after, what they were.

    diffusers rounds an adapter to the dtype of the layers that it is loaded into; the one in memory
    is fp32 over a base in half precision. It asks those layers for nothing else, and a second base
    in fp32 would not fit where the training just did.
    """
    before = [(weight, weight.data) for weight in weights]
    for weight, data in before:
        weight.data = torch.zeros((), device=data.device).expand(data.shape)
    try:
        yield
    finally:
        for weight, data in before:
            weight.data = data
