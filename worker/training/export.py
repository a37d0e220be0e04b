"""How does the adapter leave the trainer? As two files, each loaded back and compared first.

`lora_weights.safetensors` is for diffusers: its keys, and rank and alpha in the header, without
which diffusers takes the rank for alpha. `lora_weights.kohya.safetensors` is for ComfyUI and A1111;
diffusers reads it too, except for DoRA, which is therefore read here as ComfyUI does.
"""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from worker.contract.errors import ErrorCode, JobError
from worker.training.adapter import unload_adapters
from worker.training.baton import breathe
from worker.training.conditioning import random_conditions
from worker.training.families.known import family_of
from worker.training.kohya import TEXT_ENCODER, kohya_header, kohya_weights, tuned_by_comfyui

#: File for diffusers.
DIFFUSERS_FILE = "lora_weights.safetensors"

#: File for ComfyUI and A1111.
KOHYA_FILE = "lora_weights.kohya.safetensors"

#: Name under which the adapter was added to the UNet.
ADAPTER = "default"

#: Largest difference of two outputs, as a share of the largest value, that is still rounding. Bit
#: for bit equal weights at other addresses or in another memory format do differ by some of it.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}

#: Name under which a file is loaded back for the comparison.
_RELOADED = "reloaded"


def export_adapter(
    unet: UNet2DConditionModel,
    *,
    folder: Path,
    base_model_name: str,
    trigger_word: str | None,
    training: Mapping[str, str],
    text_encoder: Any = None,
) -> list[Path]:
    """Write the adapter `default` of `unet` to `folder`, for diffusers and for kohya's readers.

    Weights are fp32, whatever the UNet runs in. Equal weights and arguments give equal bytes, in
    any process. A file appears whole or not at all. Nothing is looked up on the model hub.

    Args:
        unet: with `add_adapter(LoraConfig(...))` done; not wrapped by Accelerate.
        folder: made if it does not exist.
        base_model_name: as in the catalogue; a name, never a path.
        trigger_word: the word that calls the style, if there is one.
        training: what else a reader may want to know: `ss_<name>` in the kohya file, in kohya's
            spelling. Of these `resolution` (pixels) and `prediction_type` also say so in
            `modelspec.*`; by default 512 and `epsilon`, those of Stable Diffusion 1.5.
        text_encoder: with an adapter `default` too, where it was trained.

    Returns:
        The paths of the diffusers file and of the kohya file, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, family = unet.peft_config[ADAPTER], family_of(unet.config)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        family.pipeline.save_lora_weights(
            scratch,
            unet_lora_layers=_adapter_weights(unet, ADAPTER),
            unet_lora_adapter_metadata=_adapter_metadata(config),
            **_text_layers(text_encoder),
            weight_name=DIFFUSERS_FILE,
        )
        diffusers_bytes = (Path(scratch) / DIFFUSERS_FILE).read_bytes()
    header = kohya_header(
        rank=config.r,
        alpha=config.lora_alpha,
        base_model_name=base_model_name,
        version=family.version_header(training.get("prediction_type", "epsilon")),
        trigger_word=trigger_word,
        training=training,
    )
    kohya_bytes = safetensors.torch.save(_for_kohya(unet, text_encoder), metadata=header)
    return [
        _write_whole(folder / DIFFUSERS_FILE, _with_sorted_header(diffusers_bytes)),
        _write_whole(folder / KOHYA_FILE, _with_sorted_header(kohya_bytes, _digests(kohya_bytes))),
    ]


def add_to_header(path: Path, entries: Mapping[str, str]) -> None:
    """Say more in the header of a safetensors file; its tensors stay as they are."""
    _write_whole(path, _with_sorted_header(path.read_bytes(), entries))


def verify_adapter(
    unet: UNet2DConditionModel,
    *,
    files: list[Path],
    fresh_unet: Callable[[], UNet2DConditionModel],
    text_encoder: Any = None,
    fresh_text_encoder: Callable[[], Any] | None = None,
) -> float:
    """Load each file as diffusers does and hold it against the adapter in memory.

    Compared are the layers that have an adapter, the scaling (alpha / rank) and the weights of
    each, bit for bit, and the output on fixed inputs in the dtype and on the device that the model
    has, which may differ by rounding alone. The trained model runs in eval mode for that, and all
    its modules are back in their modes after; the reloaded one runs in the mode that loading gave
    it.

    Args:
        unet: the trained one, with the adapter `default`.
        files: what `export_adapter` wrote.
        fresh_unet: gives the base without an adapter, on the device and in the dtype and memory
            format of the trained one; called once, and unloaded after each file.
        text_encoder: the trained one, where the files hold an adapter of it.
        fresh_text_encoder: gives the text encoder without an adapter.

    Returns:
        The largest difference of an output: 0 where both models were made in the same way.

    Raises:
        JobError: `TRAINING_FAILED`, naming the file and what differs; or the adapter in memory is
            itself of no use (not finite, or still all zero).
    """
    pipeline, fresh = family_of(unet.config).pipeline, fresh_unet().eval()
    load = functools.partial(pipeline.load_lora_into_unet, unet=fresh)
    read = functools.partial(_read, unet)
    parts = [_Part(unet, fresh, _unet_names(unet), read, load, _run)]
    if text_encoder is not None and fresh_text_encoder is not None:
        fresh = fresh_text_encoder().eval()
        load = functools.partial(
            pipeline.load_lora_into_text_encoder, text_encoder=fresh, prefix="text_encoder"
        )
        parts.append(_Part(text_encoder, fresh, _text_encoder_name, read, load, _run_text))
    return max(_verify(part, files) for part in parts)


@dataclass(frozen=True)
class _Part:
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


def _verify(part: _Part, files: list[Path]) -> float:
    _refuse_useless(part.trained)
    with _eval_mode(part.trained):
        wanted = part.run(part.trained)
    dtype, largest = next(part.trained.parameters()).dtype, 0.0
    for file in files:
        breathe()
        if part.trained.peft_config[ADAPTER].use_dora and file.name == KOHYA_FILE:
            wrong, output = _read_as_comfyui_does(part, file)
        else:
            wrong, output = _read_as_diffusers_does(part, file)
        difference = (output - wanted).abs().max().item()
        if not difference <= _ROUNDING[dtype] * wanted.abs().max().item():
            wrong = wrong or f"the output differs by up to {difference:g}"
        if wrong:
            raise JobError(
                ErrorCode.TRAINING_FAILED,
                f"The exported file {file.name} is not the adapter that was trained: {wrong}.",
            )
        largest = max(largest, difference)
    return largest


def _adapter_weights(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """`<module path>.lora_A.weight` and `.lora_B.weight` of every layer: fp32, CPU, contiguous."""
    # Left to itself, PEFT asks the model hub here whether the base's vocabulary was resized.
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {
        key: value.detach().to("cpu", torch.float32).contiguous() for key, value in state.items()
    }


def _adapter_layers(model: Any, adapter: str) -> dict[str, LoraLayer]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.scaling
    }


def _for_kohya(unet: Any, text_encoder: Any = None) -> dict[str, torch.Tensor]:
    """The adapters under kohya's names, on the CPU."""
    named = _kohya_part(unet, _unet_names(unet))
    return named if text_encoder is None else named | _kohya_part(text_encoder, _text_encoder_name)


def _kohya_part(trained: Any, path_of: Callable[[str], str]) -> dict[str, torch.Tensor]:
    layers = _adapter_layers(trained, ADAPTER)
    bases = {path: layer.base_layer.weight.detach().cpu().float() for path, layer in layers.items()}
    return kohya_weights(
        _adapter_weights(trained, ADAPTER),
        {path: float(layer.lora_alpha[ADAPTER]) for path, layer in layers.items()},
        path_of,
        bases if trained.peft_config[ADAPTER].use_dora else {},
    )


def _unet_names(unet: Any) -> Callable[[str], str]:
    """The path that kohya's readers know a layer of `unet` by, given its own."""
    return functools.partial(family_of(unet.config).kohya_path, unet_config=unet.config)


def _text_encoder_name(path: str) -> str:
    """The same of a layer of the text encoder."""
    return TEXT_ENCODER + _with_text_model(path)


def _with_text_model(path: str) -> str:
    """The name of what is in the text encoder with `text_model.`, as it once was."""
    return f"text_model.{path.removeprefix('text_model.')}"


def _text_layers(text_encoder: Any) -> dict[str, Any]:
    """What diffusers' writer is to be told of the text encoder; nothing where it has no adapter."""
    if text_encoder is None:
        return {}
    weights = _adapter_weights(text_encoder, ADAPTER)
    return {
        "text_encoder_lora_layers": {
            _with_text_model(key): value for key, value in weights.items()
        },
        "text_encoder_lora_adapter_metadata": _adapter_metadata(text_encoder.peft_config[ADAPTER]),
    }


def _adapter_metadata(config: LoraConfig) -> dict[str, Any]:
    """The adapter's configuration, for `lora_adapter_metadata`: what generating with it needs.

    A reader passes all of it to `LoraConfig`, and one older than ours refuses a field that it does
    not know, so fields at PEFT's default are left out. So is the dropout: diffusers adds layers in
    training mode to a pipeline in eval mode, and would drop values while it generates. Sets are
    sorted, as their order differs from process to process.
    """
    default = LoraConfig().to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if key in ("r", "lora_alpha") or (value != default[key] and key != "lora_dropout")
    }


def _with_sorted_header(content: bytes, entries: Mapping[str, str] | None = None) -> bytes:
    """The same safetensors file with its metadata, and `entries`, in alphabetical order.

    The library writes the metadata in an order that changes from process to process. Layout: 8
    bytes with the header's length (little endian), the header as JSON padded with spaces to a
    multiple of 8, the data; see the format's description in safetensors' README.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(
        sorted({**header.get("__metadata__", {}), **(entries or {})}.items())
    )
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _digests(content: bytes) -> dict[str, str]:
    """The hash of a safetensors file's tensors, as the model specification and A1111 look for it.

    Both take all that follows the header.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}


def _write_whole(path: Path, content: bytes) -> Path:
    """Write beside `path`, flush to the disk, and rename."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _refuse_useless(trained: Any) -> None:
    weights = _adapter_weights(trained, ADAPTER)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise JobError(
            ErrorCode.TRAINING_FAILED,
            "The trained adapter holds values that are not finite; try a lower learning_rate.",
        )
    if not any(bool(value.any()) for key, value in weights.items() if ".lora_B." in key):
        raise JobError(
            ErrorCode.TRAINING_FAILED,
            "The training changed nothing, the adapter is still all zero; train for more steps "
            "than lr_warmup_steps, or with a higher learning_rate.",
        )


def _read_as_diffusers_does(part: _Part, file: Path) -> tuple[str | None, torch.Tensor]:
    """In what the adapter in `file` differs from the trained one, and the output with it."""
    layers = _adapter_layers(part.trained, ADAPTER)
    try:
        with _full_precision(part.fresh.get_parameter(f"{name}.weight") for name in layers):
            _load_as_diffusers_does(part, file)
        return _mismatch(part.trained, part.fresh), part.run(part.fresh)
    finally:
        unload_adapters(part.fresh)


def _read_as_comfyui_does(part: _Part, file: Path) -> tuple[str | None, torch.Tensor]:
    """The same for a kohya file with DoRA: its weights are merged into those of the base."""
    try:
        found = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _does_not_load(file, error) from error
    expected = _kohya_part(part.trained, part.path_of)
    if lost := len(expected.keys() - found.keys()):
        return f"{lost} of {len(expected)} tensors are not in it", part.run(part.fresh)
    wrong = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    merged = {
        path: part.fresh.get_parameter(f"{path}.weight")
        for path in _adapter_layers(part.trained, ADAPTER)
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


def _does_not_load(file: Path, error: Exception) -> JobError:
    return JobError(
        ErrorCode.TRAINING_FAILED,
        f"The exported file {file.name} does not load back ({type(error).__name__}); "
        "please send the job again.",
    )


def _load_as_diffusers_does(part: _Part, file: Path) -> None:
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


def _read(unet: Any, file: Path) -> dict[str, Any]:
    """What the pipeline of `unet`'s family finds in a file."""
    family = family_of(unet.config)
    named = {"unet_config": unet.config} if family.reads_unet_config else {}
    state, alphas, metadata = family.pipeline.lora_state_dict(
        str(file),
        return_lora_metadata=True,
        local_files_only=True,
        use_safetensors=True,
        **named,
    )
    return {"state_dict": state, "network_alphas": alphas, "metadata": metadata}


def _mismatch(trained: Any, reloaded: Any) -> str | None:
    """The first thing in which the two adapters differ, as half a sentence; none if in nothing."""
    layers, loaded = _adapter_layers(trained, ADAPTER), _adapter_layers(reloaded, _RELOADED)
    if layers.keys() != loaded.keys():
        lost = len(layers.keys() - loaded.keys())
        return f"{lost} of {len(layers)} layers have no adapter after loading it"
    for name, layer in layers.items():
        scaling = layer.lora_alpha[ADAPTER] / layer.r[ADAPTER]
        if loaded[name].scaling[_RELOADED] != scaling:
            found = loaded[name].scaling[_RELOADED]
            return f"layer {name} has scaling {found:g} instead of alpha / rank = {scaling:g}"
    weights = _adapter_weights(reloaded, _RELOADED)
    for key, value in _adapter_weights(trained, ADAPTER).items():
        if key not in weights or not torch.equal(weights[key], value):
            return f"the weights of {key.removesuffix('.weight')} differ"
    return None


@torch.no_grad()
def _run(unet: UNet2DConditionModel) -> torch.Tensor:
    """The UNet's output on fixed inputs: `[1, C, h, w]`, fp32, on the CPU."""
    config = unet.config
    side = 2 ** len(config.block_out_channels)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, config.in_channels, side, side, generator=generator)
    conditions = random_conditions(family_of(config), config, generator)
    device, dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
    # Compiled blocks round otherwise than the fresh, uncompiled ones.
    with torch.compiler.set_stance("force_eager"):
        output: torch.Tensor = unet(
            sample.to(device, dtype),
            torch.tensor([500], device=device),
            **conditions.to(device).arguments(dtype),
            return_dict=False,
        )[0]
    return output.float().cpu()


@torch.no_grad()
def _run_text(text_encoder: Any) -> torch.Tensor:
    """The text encoder's output on fixed tokens: `[2, 77, D]`, fp32, on the CPU."""
    config = text_encoder.config
    shape = (2, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    output: torch.Tensor = text_encoder(tokens.to(text_encoder.device))[0]
    return output.float().cpu()


@contextmanager
def _full_precision(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """`weights` are fp32 inside, and exactly what they were after.

    diffusers rounds an adapter to the dtype of the layers that it is loaded into; the one in memory
    is fp32 over a base in half precision.
    """
    before = [(weight, weight.dtype) for weight in weights]
    for weight, _ in before:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, dtype in before:
            weight.data = weight.data.to(dtype)


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Dropout off; after, every submodule is in the mode in which it was."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
