"""The adapter: low-rank matrices beside the frozen UNet's layers, put on and taken off."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.training.adapter_weights import ADAPTER, AdapterWeights, JoinedWeights
from worker.training.compiling import forget_compiled_blocks
from worker.training.low_rank import LowRankArithmetic
from worker.training.peft_arithmetic import PeftArithmetic
from worker.training.sampler import derived_seed

#: Layers that an adapter goes beside.
_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


#: The text encoder's layers with an adapter: the projections of its attention.
_TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

#: What the names of the text encoder's weights begin with, beside those of the UNet.
TEXT_ENCODER = "text_encoder."


def add_adapters(
    unet: UNet2DConditionModel, text_encoder: Any, parameters: TrainingParameters, seed: int
) -> AdapterWeights:
    """Put fresh adapters on what the job trains: the UNet, and the text encoder if one is given."""
    adapter = add_adapter(unet, parameters, seed)
    if text_encoder is None:
        return adapter
    return JoinedWeights(
        {"": adapter, TEXT_ENCODER: add_text_adapter(text_encoder, parameters, seed)}
    )


def add_text_adapter(
    text_encoder: Any, parameters: TrainingParameters, seed: int
) -> AdapterWeights:
    """Put a fresh adapter on the text encoder's attention; returns its weights.

    Without dropout: captions are encoded alike in training, evaluation and previews.
    """
    torch.manual_seed(derived_seed(seed, "text adapter"))
    text_encoder.add_adapter(
        LoraConfig(
            r=parameters.rank,
            lora_alpha=parameters.lora_alpha,
            target_modules=_TEXT_TARGETS,
            init_lora_weights="gaussian",
        ),
        adapter_name=ADAPTER,
    )
    text_encoder.eval()  # added layers are in training mode
    arithmetic = PeftArithmetic(text_encoder)
    text_encoder.peft_arithmetic = arithmetic  # for whoever takes the adapter off
    return arithmetic


def remove_text_adapter(text_encoder: Any) -> None:
    """Take the adapter off, so that the module tree is as before it was put on."""
    if hasattr(text_encoder, "peft_arithmetic"):
        text_encoder.peft_arithmetic.remove()
        del text_encoder.peft_arithmetic
    unload_adapters(text_encoder)
    text_encoder.requires_grad_(requires_grad=False)


def unload_adapters(model: Any) -> None:
    """Leave no layer of PEFT in a model of diffusers or transformers."""
    if not getattr(model, "peft_config", None):
        return
    if hasattr(model, "unload_lora"):
        model.unload_lora()
        return
    # transformers itself only deletes what is in PEFT's layers.
    recurse_remove_peft_layers(model)
    del model.peft_config
    model._hf_peft_config_loaded = False


def add_adapter(
    unet: UNet2DConditionModel, parameters: TrainingParameters, seed: int
) -> AdapterWeights:
    """Put a fresh adapter on `unet`; returns its weights with what computes it.

    A half-precision base would get half-precision adapters: fp16 ones cannot be unscaled and bf16
    ones lose small updates. So the weights are fp32 before any optimizer sees them.

    Raises:
        JobError: `INVALID_JOB`, a target module is not in this model or is no layer.
    """
    modules = dict(unet.named_modules())
    if missing := _no_layers(modules, parameters.target_modules):
        near = [name for target in missing for name in _nearest_layer(modules, target)]
        raise JobError(
            ErrorCode.INVALID_JOB,
            f"parameters.target_modules: {', '.join(missing)} names no layer of this base model "
            "that can have an adapter; send attn, attn-mlp, or names such as "
            f"{', '.join(near or ['to_q'])}.",
        )
    torch.manual_seed(derived_seed(seed, "adapter"))
    unet.add_adapter(
        LoraConfig(
            r=parameters.rank,
            lora_alpha=parameters.lora_alpha,
            lora_dropout=parameters.lora_dropout,
            target_modules=list(parameters.target_modules),
            init_lora_weights="gaussian",
            use_dora=parameters.use_dora,
        ),
        adapter_name=ADAPTER,
    )
    arithmetic = PeftArithmetic(unet) if parameters.use_dora else LowRankArithmetic(unet)
    unet.low_rank_arithmetic = arithmetic  # for whoever takes the adapter off
    return arithmetic


def _no_layers(modules: Mapping[str, torch.nn.Module], targets: tuple[str, ...]) -> list[str]:
    """The targets that name no module, or one that is no layer."""
    wrong = []
    for target in targets:
        named = [m for name, m in modules.items() if f".{name}".endswith(f".{target}")]
        if not named or not all(isinstance(module, _LAYERS) for module in named):
            wrong.append(target)
    return wrong


def _nearest_layer(modules: Mapping[str, torch.nn.Module], target: str) -> list[str]:
    """What a target could be instead that is spelled most like it: one name, or none."""
    ends = set()
    for path, module in modules.items():
        if isinstance(module, _LAYERS):
            words = path.split(".")
            ends |= {".".join(words[i:]) for i in range(len(words)) if not words[i].isdigit()}
    return difflib.get_close_matches(target, ends, n=1, cutoff=0.5)


def remove_adapter(unet: UNet2DConditionModel) -> None:
    """Take the adapter off, so that the module tree is as before it was put on."""
    unet.disable_gradient_checkpointing()
    forget_compiled_blocks(unet)
    if hasattr(unet, "low_rank_arithmetic"):
        unet.low_rank_arithmetic.remove()
        del unet.low_rank_arithmetic
    unload_adapters(unet)
    unet.requires_grad_(requires_grad=False)
    unet.eval()
