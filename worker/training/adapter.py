"""The adapter: low-rank matrices beside the frozen UNet's linear layers, put on and taken off."""

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.training.compiling import forget_compiled_blocks
from worker.training.low_rank import ADAPTER, LowRankArithmetic
from worker.training.sampler import derived_seed

#: Layers that an adapter goes beside.
_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def add_adapter(
    unet: UNet2DConditionModel, parameters: TrainingParameters, seed: int
) -> LowRankArithmetic:
    """Put a fresh adapter on `unet`; returns its weights with what computes it.

    A half-precision base would get half-precision adapters: fp16 ones cannot be unscaled and bf16
    ones lose small updates. So the weights are fp32 before any optimizer sees them.

    Raises:
        JobError: `INVALID_JOB`, a target module is not in this model or is no layer.
    """
    if missing := _no_layers(unet, parameters.target_modules):
        raise JobError(
            ErrorCode.INVALID_JOB,
            f"parameters.target_modules: {', '.join(missing)} names no layer of this base model "
            "that can have an adapter; use attn, attn-mlp, or names such as to_q.",
        )
    torch.manual_seed(derived_seed(seed, "adapter"))
    unet.add_adapter(
        LoraConfig(
            r=parameters.rank,
            lora_alpha=parameters.lora_alpha,
            lora_dropout=parameters.lora_dropout,
            target_modules=list(parameters.target_modules),
            init_lora_weights="gaussian",
        ),
        adapter_name=ADAPTER,
    )
    arithmetic = LowRankArithmetic(unet)
    unet.low_rank_arithmetic = arithmetic  # for whoever takes the adapter off
    return arithmetic


def _no_layers(unet: UNet2DConditionModel, targets: tuple[str, ...]) -> list[str]:
    """The targets that name nothing in `unet`, or something that is not a linear layer."""
    modules = dict(unet.named_modules())
    wrong = []
    for target in targets:
        named = [m for name, m in modules.items() if f".{name}".endswith(f".{target}")]
        if not named or not all(isinstance(module, _LAYERS) for module in named):
            wrong.append(target)
    return wrong


def remove_adapter(unet: UNet2DConditionModel) -> None:
    """Take the adapter off, so that the module tree is as before it was put on."""
    unet.disable_gradient_checkpointing()
    forget_compiled_blocks(unet)
    if hasattr(unet, "low_rank_arithmetic"):
        unet.low_rank_arithmetic.remove()
        del unet.low_rank_arithmetic
    if getattr(unet, "peft_config", None):
        unet.unload_lora()
    unet.requires_grad_(requires_grad=False)
    unet.eval()
