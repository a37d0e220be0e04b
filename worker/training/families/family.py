"""What differs between kinds of base models? A class of this shape says it, one a file here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.contract.base_model import Family as FamilyName
from worker.training.families.memory import UnetMemory


@dataclass(frozen=True)
class TextPart:
    """Where a text encoder lies in a model's folder, its tokenizer, and its class."""

    tokenizer: str
    encoder: str
    encoder_class: Any


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer, loaded."""

    tokenizer: Any
    model: Any

    @property
    def most_tokens(self) -> int:
        """Tokens that it takes, start and end included. A tokenizer may not know the limit."""
        return int(self.model.config.max_position_embeddings)

    def tokens(self, text: str) -> torch.Tensor:
        """`text` as `[1, 77]` on the encoder's device, cut off or filled up."""
        tokens = self.tokenizer(
            text,
            max_length=self.most_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        ids: torch.Tensor = tokens.input_ids.to(self.model.device)
        return ids


@dataclass(frozen=True)
class Prompt:
    """What text encoders make of a caption.

    Attributes:
        states: `[1, 77, D]`, for the UNet's cross-attention.
        pooled: `[1, P]`, the caption as a whole, for a UNet that asks for it.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None


@dataclass(frozen=True)
class Shown:
    """What part of a picture is shown, in pixels; each (height, width) or (top, left).

    Attributes:
        original: the picture's size. target: the size that is trained on.
        corner: where what is shown begins in the picture after it was made as small as it goes
            with `target` still inside.
    """

    original: tuple[int, int]
    corner: tuple[int, int]
    target: tuple[int, int]


class Family(Protocol):
    """A kind of base model.

    Attributes:
        name: as in the catalogue.
        pipeline: diffusers' pipeline that loads such a model and the adapter back.
        text_parts: its text encoders, in the order in which they are put beside each other.
        memory: what training its UNet takes.
        reads_unet_config: whether its pipeline hands the UNet's configuration to the reader of an
            adapter file.
    """

    name: FamilyName
    pipeline: Any
    text_parts: tuple[TextPart, ...]
    memory: UnetMemory
    reads_unet_config: bool

    def owns(self, unet_config: Mapping[str, Any]) -> bool:
        """Whether a UNet of this configuration is of this family."""
        ...

    def encode(self, encoders: Sequence[TextEncoder], caption: str) -> Prompt:
        """A caption as the UNet is given it."""
        ...

    def painter(self, vae: Any, unet: Any, scheduler: Any) -> Any:
        """A pipeline of loaded parts, without text encoders: prompts come encoded."""
        ...

    def painter_prompts(self, prompt: Prompt, negative: Prompt) -> dict[str, torch.Tensor]:
        """The painter's arguments for a prompt and what guidance leads away from."""
        ...

    def state_width(self, encoders: Sequence[TextEncoder]) -> int:
        """D of `Prompt.states`."""
        ...

    def pooled_width(self, unet_config: Mapping[str, Any]) -> int | None:
        """P of `Prompt.pooled` that a UNet asks for; None if it asks for none."""
        ...

    def time_ids(self, shown: Shown) -> tuple[float, ...] | None:
        """What the UNet is told of a picture's sizes, beside the timestep; None if nothing."""
        ...

    def kohya_path(self, path: str, unet_config: Mapping[str, Any]) -> str:
        """The module path that kohya's readers know a layer by, given diffusers' path."""
        ...

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """What a file's header says of the base: `ss_*` as kohya's trainer, and `modelspec.*`."""
        ...
