"""UNets of the tiny base model, with and without a trained-looking adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from worker.contract.target_modules import TARGET_PRESETS

UnetMaker = Callable[..., UNet2DConditionModel]


@pytest.fixture(scope="session")
def fresh_unet(tiny_base_model: Path) -> UnetMaker:
    def make(dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(
            tiny_base_model, subfolder="unet", torch_dtype=dtype
        )

    return make


@pytest.fixture(scope="session")
def trained_unet(fresh_unet: UnetMaker) -> UnetMaker:
    """A UNet with an adapter as training leaves it: fp32, none zero, dropout, train mode."""

    def make(
        rank: int = 16,
        alpha: float = 32,
        targets: tuple[str, ...] = TARGET_PRESETS["attn"],
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        dora: bool = False,
    ) -> UNet2DConditionModel:
        unet = fresh_unet(dtype)
        unet.requires_grad_(False)
        unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=list(targets),
                lora_dropout=0.1,
                use_dora=dora,
            )
        )
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.2
                # A magnitude stays near the norm that it began as.
                is_magnitude = "magnitude" in name
                parameter.data = parameter.float() + values if is_magnitude else values
        return unet.train()

    return make
