"""What does an adapter hold? Its weights by PEFT's names, and by those of kohya's readers."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from worker.training.adapter_weights import ADAPTER
from worker.training.families.known import family_of
from worker.training.kohya import TEXT_ENCODER, kohya_weights


def weights_of(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """`<module path>.lora_A.weight` and `.lora_B.weight` of every layer: fp32, CPU, contiguous."""
    # Left to itself, PEFT asks the model hub here whether the base's vocabulary was resized.
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {
        key: value.detach().to("cpu", torch.float32).contiguous() for key, value in state.items()
    }


def layers_of(model: Any, adapter: str) -> dict[str, LoraLayer]:
    """Every layer with that adapter, by its module path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.scaling
    }


def kohya_part(trained: Any, path_of: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """One trained model's part of the kohya file; `path_of` gives the readers' path of a layer."""
    layers = layers_of(trained, ADAPTER)
    bases = {}
    if trained.peft_config[ADAPTER].use_dora:  # else nobody asks for them, and they are large
        bases = {
            path: layer.base_layer.weight.detach().cpu().float() for path, layer in layers.items()
        }
    return kohya_weights(
        weights_of(trained, ADAPTER),
        {path: float(layer.lora_alpha[ADAPTER]) for path, layer in layers.items()},
        path_of,
        bases,
    )


def unet_names(unet: Any) -> Callable[[str], str]:
    """The path that kohya's readers know a layer of `unet` by, given its own."""
    return functools.partial(family_of(unet.config).kohya_path, config=unet.config)


def text_encoder_name(path: str) -> str:
    """The same of a layer of the text encoder."""
    return TEXT_ENCODER + with_text_model(path)


def with_text_model(path: str) -> str:
    """The name of what is in the text encoder with `text_model.`, as it once was."""
    return f"text_model.{path.removeprefix('text_model.')}"
