"""Stable Diffusion 2.x: OpenCLIP's wider text encoder, and most often velocities predicted.

The text encoder's files have OpenCLIP's activation and one layer less than OpenCLIP: its last
hidden states are what the UNet was trained with, so it is encoded as 1.x is.
"""

from collections.abc import Mapping
from typing import Any

from worker.contract.base_model import Family as FamilyName
from worker.training.families.memory import DenoiserMemory, TextMemory
from worker.training.families.sd1 import StableDiffusion1


class StableDiffusion2(StableDiffusion1):
    """2.0 and 2.1, with and without `-base`, and what was made from them."""

    name: FamilyName = "sd2"
    memory = DenoiserMemory(
        workspace=1.0,
        weights_a_rank={"attn": 207_488, "attn-mlp": 382_208},
        saved=0.01,
        saved_at_512={
            "attn": {"plain": 0.705, "dropout": 0.86, "checkpointing": 0.10},
            "attn-mlp": {"plain": 0.82, "dropout": 1.03, "checkpointing": 0.10},
            "dora": {"plain": 1.31, "dropout": 1.50, "checkpointing": 0.10},
            "dora-mlp": {"plain": 2.11, "dropout": 2.55, "checkpointing": 0.10},
        },
        saved_of_weights={
            "dora": {"plain": 0.43, "dropout": 0.71},
            "dora-mlp": {"plain": 1.22, "dropout": 2.06},
        },
        backward_at_512=0.10,
        text=TextMemory(weights_a_rank=188_416, saved=0.075),
    )

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Its attention blocks are entered by linear layers, and it asks for states alone."""
        return not config.get("addition_embed_type") and bool(config.get("use_linear_projection"))

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """Version 2: 512 px models predict noise, 768 px ones velocities."""
        velocity = prediction_type == "v_prediction"
        return {
            "ss_base_model_version": "sd_v2_v" if velocity else "sd_v2",
            "ss_v2": "True",
            "modelspec.architecture": f"stable-diffusion-v2-{'768-v' if velocity else '512'}/lora",
        }
