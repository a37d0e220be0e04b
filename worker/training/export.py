"""How does the adapter leave the trainer? As two files, each for other readers.

`lora_weights.safetensors` is for diffusers: its keys, and rank and alpha in the header, without
which diffusers takes the rank for alpha. `lora_weights.kohya.safetensors` is for ComfyUI and A1111;
diffusers reads it too, except for DoRA and for Stable Diffusion 3. `verify.py` loads both back.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from worker.training.adapter_state import (
    kohya_part,
    text_encoder_name,
    unet_names,
    weights_of,
    with_text_model,
)
from worker.training.adapter_weights import ADAPTER
from worker.training.families.known import family_of
from worker.training.kohya import kohya_header
from worker.training.safetensors_file import tensor_digests, with_sorted_header, write_whole

#: File for diffusers.
DIFFUSERS_FILE = "lora_weights.safetensors"

#: File for ComfyUI and A1111.
KOHYA_FILE = "lora_weights.kohya.safetensors"


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
        trained = {
            f"{family.denoiser.name}_lora_layers": weights_of(unet, ADAPTER),
            f"{family.denoiser.name}_lora_adapter_metadata": _adapter_metadata(config),
        }
        family.pipeline.save_lora_weights(
            scratch,
            **trained,
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
        write_whole(folder / DIFFUSERS_FILE, with_sorted_header(diffusers_bytes)),
        write_whole(
            folder / KOHYA_FILE, with_sorted_header(kohya_bytes, tensor_digests(kohya_bytes))
        ),
    ]


def _for_kohya(unet: Any, text_encoder: Any = None) -> dict[str, torch.Tensor]:
    """The adapters under kohya's names, on the CPU."""
    named = kohya_part(unet, unet_names(unet))
    return named if text_encoder is None else named | kohya_part(text_encoder, text_encoder_name)


def _text_layers(text_encoder: Any) -> dict[str, Any]:
    """What diffusers' writer is to be told of the text encoder; nothing where it has no adapter."""
    if text_encoder is None:
        return {}
    weights = weights_of(text_encoder, ADAPTER)
    return {
        "text_encoder_lora_layers": {with_text_model(key): value for key, value in weights.items()},
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
