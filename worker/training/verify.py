"""Is an exported file the adapter that was trained? Loaded back and compared before it leaves."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from worker.contract.errors import ErrorCode, JobError
from worker.training.adapter_state import text_encoder_name, unet_names, weights_of
from worker.training.adapter_weights import ADAPTER
from worker.training.baton import breathe
from worker.training.compiling import as_written
from worker.training.conditioning import random_conditions
from worker.training.device import without_tf32
from worker.training.export import KOHYA_FILE
from worker.training.families.known import family_of
from worker.training.reading_back import Part, read_as_comfyui_does, read_as_diffusers_does

#: Largest difference of two outputs, as a share of the largest value, that is still rounding. Bit
#: for bit equal weights at other addresses or in another memory format do differ by some of it.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


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
    family, fresh = family_of(unet.config), fresh_unet().eval()
    pipeline, name = family.pipeline, family.denoiser.name
    load = functools.partial(getattr(pipeline, f"load_lora_into_{name}"), **{name: fresh})
    read = functools.partial(_read, unet)
    parts = [Part(unet, fresh, unet_names(unet), read, load, _run)]
    if text_encoder is not None and fresh_text_encoder is not None:
        fresh = fresh_text_encoder().eval()
        load = functools.partial(
            pipeline.load_lora_into_text_encoder, text_encoder=fresh, prefix="text_encoder"
        )
        parts.append(Part(text_encoder, fresh, text_encoder_name, read, load, _run_text))
    as_comfyui = unet.peft_config[ADAPTER].use_dora or not family.diffusers_reads_kohya
    return max(_verify(part, files, kohya_as_comfyui=as_comfyui) for part in parts)


def _verify(part: Part, files: list[Path], *, kohya_as_comfyui: bool) -> float:
    _refuse_useless(part.trained)
    with _eval_mode(part.trained):
        wanted = part.run(part.trained)
    dtype, largest = next(part.trained.parameters()).dtype, 0.0
    for file in files:
        breathe()
        if kohya_as_comfyui and file.name == KOHYA_FILE:
            wrong, output = read_as_comfyui_does(part, file)
        else:
            wrong, output = read_as_diffusers_does(part, file)
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


def _refuse_useless(trained: Any) -> None:
    weights = weights_of(trained, ADAPTER)
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


def _read(unet: Any, file: Path) -> dict[str, Any]:
    """What the pipeline of `unet`'s family finds in a file."""
    family = family_of(unet.config)
    named = {"unet_config": unet.config} if family.reads_unet_config else {}
    state, *alphas, metadata = family.pipeline.lora_state_dict(
        str(file),
        return_lora_metadata=True,
        local_files_only=True,
        use_safetensors=True,
        **named,
    )
    found = {"state_dict": state, "metadata": metadata}
    return found | ({"network_alphas": alphas[0]} if alphas else {})


@torch.no_grad()
def _run(unet: Any) -> torch.Tensor:
    """The denoiser's output on fixed inputs: `[1, C, h, w]`, fp32, on the CPU."""
    config, family = unet.config, family_of(unet.config)
    side = family.smallest_side(config)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, config.in_channels, side, side, generator=generator)
    conditions = random_conditions(family, config, generator)
    device, dtype = unet.device, unet.dtype
    # Compiled blocks round otherwise than the fresh, uncompiled ones.
    with as_written(unet), without_tf32():
        output: torch.Tensor = unet(
            sample.to(device, dtype),
            timestep=torch.tensor([500], device=device),
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
    with without_tf32():
        output: torch.Tensor = text_encoder(tokens.to(text_encoder.device))[0]
    return output.float().cpu()


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
