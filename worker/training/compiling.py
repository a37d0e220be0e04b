"""Regional `torch.compile`: the UNet's repeated blocks, compiled, and as written after a job."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


@contextmanager
def as_written(model: torch.nn.Module) -> Iterator[None]:
    """Inside, nothing of `model` runs compiled: not at shapes that training does not have.

    Where nothing is, torch's switch is left alone. It is the whole process's, and jobs that share a
    trainer (which compiles nothing) would set it back in another order than they set it.
    """
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield
