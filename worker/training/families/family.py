"""What differs between kinds of base models? A class of this shape says it, one a file here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from transformers import CLIPTokenizer

from worker.contract.base_model import Family as FamilyName
from worker.training.families.memory import DenoiserMemory


@dataclass(frozen=True)
class DenoiserPart:
    """What is trained, a UNet or a transformer: its name in folders, pipelines and files."""

    name: Literal["unet", "transformer"]
    model: Any


@dataclass(frozen=True)
class TextPart:
    """Where a text encoder lies in a model's folder, its tokenizer, and their classes.

    Attributes:
        most_tokens: that it is given; None: what its configuration says.
        optional: it may be absent; what is trained has its width then.
        full_precision: whether it runs in fp32, or as the base does.
    """

    tokenizer: str
    encoder: str
    encoder_class: Any
    tokenizer_class: Any = CLIPTokenizer
    most_tokens: int | None = None
    optional: bool = False
    full_precision: bool = True


class AbsentText(torch.nn.Module):
    """In the place of a text encoder that a model comes without; `width` is what it would have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer, loaded."""

    tokenizer: Any
    model: Any
    limit: int | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens that it takes, start and end included. A tokenizer may not know the limit."""
        return self.limit or int(self.model.config.max_position_embeddings)

    @property
    def is_absent(self) -> bool:
        """Whether there is none."""
        return isinstance(self.model, AbsentText)

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
        states: `[1, N, D]`, what is attended to.
        pooled: `[1, P]`, the caption as a whole, for a denoiser that asks for it.
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


class Schedule(Protocol):
    """How noise is added, and what is to be said of it; `objective.py` and `flow.py` have one each.

    Timesteps are places in its tables, 0 … T - 1.
    """

    def __len__(self) -> int:
        """T."""
        ...

    def choose(self, source: torch.Generator) -> int:
        """A timestep to train at."""
        ...

    def told(self, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser is told of timesteps `[B]`."""
        ...

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What becomes of `[B, C, h, w]` at timesteps `[B]`."""
        ...

    def target(
        self,
        prediction_type: str,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """What the denoiser shall say."""
        ...

    def weights(
        self, prediction_type: str, timesteps: torch.Tensor, snr_gamma: float | None
    ) -> torch.Tensor | None:
        """What each sample counts, `[B]`; None for the plain loss."""
        ...


class Family(Protocol):
    """A kind of base model.

    Attributes:
        name: as in the catalogue.
        pipeline: diffusers' pipeline that loads such a model and the adapter back.
        denoiser: what of it is trained.
        scheduler: diffusers' class that reads its scheduler's configuration.
        prediction_types: what the denoiser may be trained to say.
        text_parts: its text encoders, in the order in which they are put beside each other.
        memory: what training its denoiser takes.
        reads_unet_config: whether its pipeline hands the UNet's configuration to the reader of an
            adapter file.
        diffusers_reads_kohya: whether its pipeline also loads the kohya file.
    """

    name: FamilyName
    pipeline: Any
    denoiser: DenoiserPart
    scheduler: Any
    prediction_types: tuple[str, ...]
    text_parts: tuple[TextPart, ...]
    memory: DenoiserMemory
    reads_unet_config: bool
    diffusers_reads_kohya: bool

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Whether a denoiser of this configuration is of this family."""
        ...

    def schedule(self, scheduler: Any, device: torch.device) -> Schedule:
        """The noise that a loaded scheduler stands for."""
        ...

    def predicts(self, scheduler: Any) -> str:
        """What a denoiser with this scheduler says, whether or not it can be trained."""
        ...

    def sampler(self, schedule: Any, prediction_type: str) -> Any:
        """What draws in few steps on a schedule of this family."""
        ...

    def encode(self, encoders: Sequence[TextEncoder], caption: str) -> Prompt:
        """A caption as the denoiser is given it."""
        ...

    def painter(self, vae: Any, denoiser: Any, scheduler: Any) -> Any:
        """A pipeline of loaded parts, without text encoders: prompts come encoded."""
        ...

    def painter_prompts(self, prompt: Prompt, negative: Prompt) -> dict[str, torch.Tensor]:
        """The painter's arguments for a prompt and what guidance leads away from."""
        ...

    def context_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """N and D of the `Prompt.states` that a denoiser takes."""
        ...

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """P of `Prompt.pooled` that a denoiser asks for; None if it asks for none."""
        ...

    def smallest_side(self, config: Mapping[str, Any]) -> int:
        """Side of a latent that is large enough to see what a denoiser makes of it."""
        ...

    def fits(self, config: Mapping[str, Any], encoders: Sequence[TextEncoder]) -> bool:
        """Whether a denoiser and text encoders are made for each other."""
        ...

    def time_ids(self, shown: Shown) -> tuple[float, ...] | None:
        """What the denoiser is told of a picture's sizes, beside the timestep; None if nothing."""
        ...

    def kohya_path(self, path: str, config: Mapping[str, Any]) -> str:
        """The module path that kohya's readers know a layer by, given diffusers' path."""
        ...

    def version_header(self, prediction_type: str) -> dict[str, str]:
        """What a file's header says of the base: `ss_*` as kohya's trainer, and `modelspec.*`."""
        ...
