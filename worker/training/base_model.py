"""The base model: loaded from a folder or the hub's cache, frozen, kept warm across jobs."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.training.adapter import remove_adapter
from worker.training.device import Arithmetic
from worker.training.objective import NoiseSchedule


@dataclass
class LoadedBaseModel:
    """A base model, frozen and in eval mode.

    Attributes:
        unet: in the dtype of the job. vae, text_encoder: fp32, for an exact cache.
        schedule: the noise schedule on the device. prediction_type: what the UNet says.
    """

    entry: BaseModelEntry
    arithmetic: Arithmetic
    tokenizer: Any
    text_encoder: Any
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    schedule: NoiseSchedule
    prediction_type: str


class BaseModelShelf:
    """Keeps the last base model, so that the next job of its kind starts warm."""

    def __init__(self, *, allow_hub: bool = False) -> None:
        self._model: LoadedBaseModel | None = None
        self.allow_hub = allow_hub

    def get(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> LoadedBaseModel:
        """The model, clean of any adapter. Raises `JobError` BASE_MODEL_UNAVAILABLE."""
        kept = self._model
        if kept is None or (kept.entry, kept.arithmetic) != (entry, arithmetic):
            self._model = kept = None  # free the old one before the new one is loaded
            self._model = kept = load_base_model(entry, arithmetic, allow_hub=self.allow_hub)
        self.tidy()
        return kept

    def tidy(self) -> None:
        """Take a job's adapter off, so that the next one finds the base as it was loaded."""
        if self._model is not None:
            remove_adapter(self._model.unet)


def load_base_model(
    entry: BaseModelEntry, arithmetic: Arithmetic, *, allow_hub: bool
) -> LoadedBaseModel:
    """Load every part of a Stable Diffusion 1.x pipeline, safetensors only.

    Raises:
        JobError: BASE_MODEL_UNAVAILABLE, naming the model, not where it lies.
    """
    try:
        common = {"revision": entry.revision, "local_files_only": not allow_hub}
        weights = {**common, "variant": entry.variant, "use_safetensors": True}
        tokenizer = CLIPTokenizer.from_pretrained(entry.location, subfolder="tokenizer", **common)
        text_encoder = CLIPTextModel.from_pretrained(
            entry.location, subfolder="text_encoder", dtype=torch.float32, **weights
        )
        vae = AutoencoderKL.from_pretrained(
            entry.location, subfolder="vae", torch_dtype=torch.float32, **weights
        )
        scheduler = DDPMScheduler.from_pretrained(entry.location, subfolder="scheduler", **common)
        unet = load_unet(entry, arithmetic, allow_hub=allow_hub)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise JobError(
            ErrorCode.BASE_MODEL_UNAVAILABLE,
            f"The base model {entry.name} cannot be loaded ({type(error).__name__}); the operator "
            "has to provide its safetensors files, or send another parameters.base_model.",
        ) from error
    for part in (text_encoder, vae):
        part.requires_grad_(requires_grad=False)
        part.to(arithmetic.device).eval()
    return LoadedBaseModel(
        entry=entry,
        arithmetic=arithmetic,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        schedule=NoiseSchedule(scheduler.alphas_cumprod, arithmetic.device),
        prediction_type=str(scheduler.config.prediction_type),
    )


def load_unet(
    entry: BaseModelEntry, arithmetic: Arithmetic, *, allow_hub: bool
) -> UNet2DConditionModel:
    """The UNet alone, frozen, in eval mode."""
    unet = UNet2DConditionModel.from_pretrained(
        entry.location,
        subfolder="unet",
        revision=entry.revision,
        variant=entry.variant,
        local_files_only=not allow_hub,
        use_safetensors=True,
        torch_dtype=arithmetic.base_dtype,
    )
    unet.requires_grad_(requires_grad=False)
    return unet.to(arithmetic.device).eval()
