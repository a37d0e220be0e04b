"""Regional `torch.compile`: the UNet's repeated blocks, compiled, and as written after a job."""

import os
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

#: Shapes of one kind of block that are compiled before torch gives up: depths and widths of a
#: model, with and without gradients.
_SHAPES = 64


def compile_blocks(unet: UNet2DConditionModel, cache: Path | None) -> None:
    """Have each repeated block compiled at its first pass.

    Args:
        unet: with its adapter on.
        cache: folder that outlives the process, so that the next one need not compile anew; torch
            reads its path from the environment.
    """
    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    torch._dynamo.config.recompile_limit = _SHAPES
    unet.compile_repeated_blocks(dynamic=False)


def forget_compiled_blocks(unet: UNet2DConditionModel) -> None:
    """Let every block run as it is written again; nothing happens where none was compiled."""
    for module in unet.modules():
        module._compiled_call_impl = None
