"""What is the UNet told beside the noisy latents? Captions encoded once, and what families add."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.training.baton import breathe
from worker.training.families.family import Family, Shown, TextEncoder


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told with B noisy latents.

    Attributes:
        states: `[B, 77, D]`, what it attends to.
        pooled: `[B, P]`, the captions as a whole. time_ids: `[B, 6]`, the pictures' sizes. Both
            for a family whose UNet asks for them.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Conditions":
        """The same on `device`."""
        pooled, ids = self.pooled, self.time_ids
        return Conditions(
            self.states.to(device),
            None if pooled is None else pooled.to(device),
            None if ids is None else ids.to(device),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Conditions]") -> "Conditions":
        """Those of several micro-batches of one family, one after another."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        ids = [part.time_ids for part in parts if part.time_ids is not None]
        return cls(
            torch.cat([part.states for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(ids) if ids else None,
        )

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """The denoiser's arguments, in its dtype; time ids stay as they are."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.states.to(dtype)}
        if self.pooled is not None and self.time_ids is None:
            arguments["pooled_projections"] = self.pooled.to(dtype)
        elif self.pooled is not None:
            added = {"text_embeds": self.pooled.to(dtype), "time_ids": self.time_ids}
            arguments["added_cond_kwargs"] = added
        return arguments


@dataclass(frozen=True)
class Captions:
    """Captions as the UNet is given them, kept on the device.

    Attributes:
        states: `[C + 1, 77, D]`; the last one is the empty prompt's.
        pooled: `[C + 1, P]`, likewise, for a family whose UNet asks for it.
        tokens: what states were made from, `[C + 1, 77]`, where one text encoder makes them.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def told(
        self, places: torch.Tensor, time_ids: torch.Tensor | None, text_encoder: Any = None
    ) -> Conditions:
        """The conditions of B samples: whose captions are at `places` `[B]`, and `time_ids`.

        With a `text_encoder`, one that is trained, captions are encoded anew by it.
        """
        pooled = None if self.pooled is None else self.pooled[places]
        if text_encoder is None:
            return Conditions(self.states[places], pooled, time_ids)
        if self.tokens is None:
            raise ValueError("several text encoders cannot be trained")
        return Conditions(text_encoder(self.tokens[places])[0], pooled, time_ids)


@torch.no_grad()
def encode_captions(
    family: Family, encoders: Sequence[TextEncoder], captions: Sequence[str]
) -> Captions:
    """Encode each of C distinct captions, and the empty prompt, once."""
    prompts = []
    for caption in [*captions, ""]:
        breathe()
        prompts.append(family.encode(encoders, caption))
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    tokens = [encoders[0].tokens(caption) for caption in [*captions, ""]]
    return Captions(
        torch.cat([prompt.states for prompt in prompts]),
        torch.cat(pooled) if pooled else None,
        torch.cat(tokens) if len(encoders) == 1 else None,
    )


def text_bytes(family: Family, config: Mapping[str, Any]) -> int:
    """What one encoded caption takes for a denoiser of this configuration: fp32 throughout."""
    tokens, width = family.context_shape(config)
    return (tokens * width + (family.pooled_width(config) or 0)) * torch.float32.itemsize


def time_ids(
    family: Family, shown: Sequence[Sequence[Shown]], device: torch.device
) -> torch.Tensor | None:
    """What the UNet is told of the sizes of N pictures' V variants, `[N, V, 6]`; None if nothing.

    Half precision would not do: it has not all whole numbers of a picture's size.
    """
    ids = [[family.time_ids(variant) for variant in variants] for variants in shown]
    return None if ids[0][0] is None else torch.tensor(ids, device=device)


def random_conditions(
    family: Family, config: Mapping[str, Any], generator: torch.Generator
) -> Conditions:
    """Conditions of one sample that no caption has, to see what a denoiser makes of them."""
    states = torch.randn(1, *family.context_shape(config), generator=generator)
    width = family.pooled_width(config)
    if width is None:
        return Conditions(states)
    ids = family.time_ids(Shown((512, 768), (0, 128), (512, 512)))
    pooled = torch.randn(1, width, generator=generator)
    return Conditions(states, pooled, None if ids is None else torch.tensor([ids]))
