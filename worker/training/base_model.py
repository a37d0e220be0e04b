"""The base model: loaded from a folder or the hub's cache, frozen, kept warm across jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.training.adapter import remove_adapter, remove_text_adapter
from worker.training.device import Arithmetic
from worker.training.families.family import (
    AbsentText,
    Family,
    Schedule,
    TextEncoder,
    TextPart,
)
from worker.training.families.known import FAMILIES, family_of

#: Tokens of the vocabulary that transformers makes up where it finds no tokenizer files: start and
#: end of a text. Every caption would be the same to the model.
_NO_VOCABULARY = 2


#: Dimensions of a convolution's weight, whose memory format matters.
_KERNEL_DIMENSIONS = 4


@dataclass
class LoadedBaseModel:
    """A base model, frozen and in eval mode.

    Attributes:
        family: what is particular to models of its kind.
        unet: what is trained, a UNet or a transformer, in the dtype of the job.
        vae, text_encoders: fp32, for an exact cache.
        schedule: of the noise, on the device. prediction_type: what the denoiser says.
    """

    entry: BaseModelEntry
    arithmetic: Arithmetic
    family: Family
    text_encoders: tuple[TextEncoder, ...]
    vae: AutoencoderKL
    unet: Any
    schedule: Schedule
    prediction_type: str

    def serves(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> bool:
        """Whether the weights in memory are those that would be loaded."""
        mine = self.entry, self.arithmetic.device, self.arithmetic.base_dtype
        return mine == (entry, arithmetic.device, arithmetic.base_dtype)


class Shelf(Protocol):
    """Where a job takes its base model from."""

    def get(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> LoadedBaseModel:
        """The model, clean of any adapter. Raises `JobError` BASE_MODEL_UNAVAILABLE."""

    def tidy(self) -> None:
        """Take the job's adapter off."""


class BaseModelShelf:
    """Keeps the last base model, so that the next job of its kind starts warm."""

    def __init__(self, *, allow_hub: bool = False) -> None:
        self._model: LoadedBaseModel | None = None
        self.allow_hub = allow_hub

    def get(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> LoadedBaseModel:
        """The model, clean of any adapter. Raises `JobError` BASE_MODEL_UNAVAILABLE."""
        kept = self._model
        if kept is None or not kept.serves(entry, arithmetic):
            self._model = kept = None  # free the old one before the new one is loaded
            self._model = kept = load_base_model(entry, arithmetic, allow_hub=self.allow_hub)
        kept.arithmetic = arithmetic
        self.tidy()
        return kept

    def tidy(self) -> None:
        """Take a job's adapter off, so that the next one finds the base as it was loaded."""
        if self._model is not None:
            remove_adapter(self._model.unet)
            for encoder in self._model.text_encoders:
                remove_text_adapter(encoder.model)


def load_base_model(
    entry: BaseModelEntry, arithmetic: Arithmetic, *, allow_hub: bool
) -> LoadedBaseModel:
    """Load every part of a pipeline of the entry's family, safetensors only.

    Raises:
        JobError: BASE_MODEL_UNAVAILABLE, naming the model, not where it lies: a part is missing or
            damaged, or the parts do not fit together.
        torch.OutOfMemoryError: the GPU is too full; that is not the model's fault.
    """
    family = FAMILIES[entry.family]
    try:
        common = {"revision": entry.revision, "local_files_only": not allow_hub}
        config = _config_of_its_family(entry, common)
        weights = {
            **common,
            "variant": entry.variant,
            "use_safetensors": True,
            "output_loading_info": True,
        }
        text_encoders = _load_text_encoders(entry, arithmetic, config, common, weights)
        vae, vae_info = AutoencoderKL.from_pretrained(
            entry.location, subfolder="vae", torch_dtype=torch.float32, **weights
        )
        _refuse_random_weights(vae_info)
        scheduler = family.scheduler.from_pretrained(
            entry.location, subfolder="scheduler", **common
        )
        unet = load_denoiser(entry, arithmetic, allow_hub=allow_hub)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unavailable(entry, f"cannot be loaded ({type(error).__name__})") from error
    prediction_type = family.predicts(scheduler)
    if misfit := _misfit(family, text_encoders, vae, unet, prediction_type):
        raise _unavailable(entry, f"cannot be trained: {misfit}")
    for part in (*(encoder.model for encoder in text_encoders), vae):
        part.requires_grad_(requires_grad=False)
        part.to(arithmetic.device).eval()
    return LoadedBaseModel(
        entry=entry,
        arithmetic=arithmetic,
        family=family,
        text_encoders=text_encoders,
        vae=vae,
        unet=unet,
        schedule=family.schedule(scheduler, arithmetic.device),
        prediction_type=prediction_type,
    )


def _load_text_encoders(
    entry: BaseModelEntry,
    arithmetic: Arithmetic,
    config: Mapping[str, Any],
    common: dict[str, Any],
    weights: dict[str, Any],
) -> tuple[TextEncoder, ...]:
    """The family's text encoders with their tokenizers, in fp32 or as the base."""
    family = FAMILIES[entry.family]
    loaded = []
    for part in family.text_parts:
        if part.optional and not _has(entry, part, common):
            _, width = family.context_shape(config)
            loaded.append(TextEncoder(None, AbsentText(width)))
            continue
        tokenizer = part.tokenizer_class.from_pretrained(
            entry.location, subfolder=part.tokenizer, **common
        )
        encoder, info = part.encoder_class.from_pretrained(
            entry.location,
            subfolder=part.encoder,
            dtype=torch.float32 if part.full_precision else arithmetic.base_dtype,
            **weights,
        )
        _refuse_random_weights(info)
        loaded.append(TextEncoder(tokenizer, encoder, part.most_tokens))
    return tuple(loaded)


def _has(entry: BaseModelEntry, part: TextPart, common: dict[str, Any]) -> bool:
    """Whether this text encoder is there. Raises `OSError` if the hub does not say."""
    try:
        found, _ = part.encoder_class.config_class.get_config_dict(
            entry.location, subfolder=part.encoder, **common
        )
    except OSError:
        if not common["local_files_only"]:
            raise
        return False
    return bool(found)


def load_denoiser(entry: BaseModelEntry, arithmetic: Arithmetic, *, allow_hub: bool) -> Any:
    """What is trained by itself, frozen, in eval mode, in the memory format of convolutions."""
    part = FAMILIES[entry.family].denoiser
    unet, info = part.model.from_pretrained(
        entry.location,
        subfolder=part.name,
        revision=entry.revision,
        variant=entry.variant,
        local_files_only=not allow_hub,
        use_safetensors=True,
        torch_dtype=arithmetic.base_dtype,
        output_loading_info=True,
    )
    _refuse_random_weights(info)
    unet.requires_grad_(requires_grad=False)
    unet.to(arithmetic.device)
    for weight in unet.parameters():
        # A copy also lets go of the file's mapping, whose pages a CPU would hold beside it.
        is_kernel = weight.dim() == _KERNEL_DIMENSIONS
        layout = torch.channels_last if is_kernel else torch.contiguous_format
        weight.data = weight.data.clone(memory_format=layout)
    return unet.eval()


def unet_of_same_weights(unet: Any) -> Any:
    """Another denoiser without an adapter, on the very weights of the base under `unet`.

    It takes no memory and reads no file, and what is put on it does not touch `unet`.
    """
    with torch.device("meta"):
        fresh = type(unet).from_config(unet.config)
    fresh.load_state_dict(_base_weights(unet), assign=True)
    return fresh.requires_grad_(requires_grad=False).eval()


def text_encoder_of_same_weights(text_encoder: Any) -> Any:
    """The same for the text encoder."""
    with torch.device("meta"):
        fresh = type(text_encoder)(text_encoder.config)
    fresh.load_state_dict(_base_weights(text_encoder), assign=True)
    for name, values in text_encoder.named_buffers():  # some are in no state
        owner, _, key = name.rpartition(".")
        fresh.get_submodule(owner).register_buffer(key, values, persistent=False)
    return fresh.requires_grad_(requires_grad=False).eval()


def _base_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer.", "."): weight.detach()
        for name, weight in module.state_dict().items()
        if ".lora_" not in name
    }


def _config_of_its_family(entry: BaseModelEntry, common: dict[str, Any]) -> Mapping[str, Any]:
    """The denoiser's configuration, which shows what it is.

    It is looked at before anything large is read: a wrong row in the catalogue is the likeliest of
    mistakes.
    """
    parts = {family.denoiser.name: family.denoiser for family in FAMILIES.values()}
    expected = FAMILIES[entry.family].denoiser.name
    config: Mapping[str, Any] | None = None
    for name in sorted(parts, key=lambda name: name != expected):
        try:
            config = parts[name].model.load_config(entry.location, subfolder=name, **common)
            break
        except OSError as error:
            missing = error
    if config is None:
        raise missing
    found = family_of(config).name
    if found != entry.family:
        raise _unavailable(
            entry,
            f"is of the family {found!r}, and its row in the catalogue says {entry.family!r}",
        )
    return config


def _refuse_random_weights(*loading_infos: dict[str, Any]) -> None:
    """The libraries only warn where a file lacks weights, and go on with random ones."""
    missing = sum(len(info["missing_keys"]) for info in loading_infos)
    if missing:
        raise ValueError(f"{missing} weights are not in the model's files")


def _misfit(
    family: Family,
    text_encoders: tuple[TextEncoder, ...],
    vae: Any,
    unet: Any,
    prediction_type: str,
) -> str | None:
    """Why these parts cannot be trained together, as half a sentence; None if they can."""
    for encoder in text_encoders:
        if encoder.is_absent:
            continue
        words, known = len(encoder.tokenizer), encoder.model.config.vocab_size
        if not _NO_VOCABULARY < words <= known:
            return f"its tokenizer has {words} tokens and its text encoder knows {known}"
    name = {"unet": "UNet"}.get(family.denoiser.name, family.denoiser.name)
    if not family.fits(unet.config, text_encoders):
        return f"its {name} and its text encoders are not made for each other"
    if unet.config.in_channels != vae.config.latent_channels:
        return f"its {name} takes {unet.config.in_channels} channels, as one for inpainting does"
    if prediction_type not in family.prediction_types:
        known_types = ", ".join(family.prediction_types)
        return f"it predicts {prediction_type!r}, which is not one of {known_types}"
    return None


def _unavailable(entry: BaseModelEntry, what: str) -> JobError:
    return JobError(
        ErrorCode.BASE_MODEL_UNAVAILABLE,
        f"The base model {entry.name} {what}; the operator has to provide its safetensors files, "
        "or send another parameters.base_model.",
    )
