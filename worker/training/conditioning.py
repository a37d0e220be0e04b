"""What is the UNet told beside the noisy latents? Captions encoded once, and what families add."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.training.families.family import Family, Framing, TextEncoder


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told with B noisy latents.

    Attributes:
        states: `[B, 77, D]`, what it attends to.
        pooled: `[B, P]`, the captions as a whole. time_ids: `[B, 6]`, the framing. Both for a
            family whose UNet asks for them.
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

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """The UNet's arguments, in its dtype.

        Time ids stay as they are: half precision has not all whole numbers of a picture's size.
        """
        arguments: dict[str, Any] = {"encoder_hidden_states": self.states.to(dtype)}
        if self.pooled is not None:
            added = {"text_embeds": self.pooled.to(dtype), "time_ids": self.time_ids}
            arguments["added_cond_kwargs"] = added
        return arguments


@dataclass(frozen=True)
class Conditioning:
    """What there is to tell, kept on the device.

    Attributes:
        states: `[C + 1, 77, D]`, of each caption; the last one is the empty prompt's.
        pooled: `[C + 1, P]`, likewise. time_ids: `[N, V, 6]`, of each picture's variants. Both for
            a family whose UNet asks for them.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def of(
        self, pictures: torch.Tensor, variants: torch.Tensor, captions: torch.Tensor
    ) -> Conditions:
        """The conditions of B samples: each a picture, its variant and a caption's index, `[B]`."""
        return Conditions(
            states=self.states[captions],
            pooled=None if self.pooled is None else self.pooled[captions],
            time_ids=None if self.time_ids is None else self.time_ids[pictures, variants],
        )


@torch.no_grad()
def encode_conditioning(
    family: Family,
    encoders: Sequence[TextEncoder],
    captions: Sequence[str],
    framings: Sequence[Sequence[Framing]],
    device: torch.device,
) -> Conditioning:
    """Encode each caption and the empty prompt once.

    Args:
        family: says how.
        encoders: its text encoders.
        captions: C distinct ones.
        framings: of each picture's variants; as many variants of each picture.
        device: where all of it is kept.
    """
    prompts = [family.encode(encoders, caption) for caption in [*captions, ""]]
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    ids = [[family.time_ids(framing) for framing in variants] for variants in framings]
    return Conditioning(
        states=torch.cat([prompt.states for prompt in prompts]),
        pooled=torch.cat(pooled) if pooled else None,
        time_ids=None if ids[0][0] is None else torch.tensor(ids, device=device),
    )


def random_conditions(
    family: Family, unet_config: Mapping[str, Any], generator: torch.Generator
) -> Conditions:
    """Conditions of one sample that no caption has, to see what a UNet makes of them."""
    states = torch.randn(1, 77, unet_config["cross_attention_dim"], generator=generator)
    width = family.pooled_width(unet_config)
    if width is None:
        return Conditions(states)
    ids = family.time_ids(Framing((512, 768), (0, 128), (512, 512)))
    pooled = torch.randn(1, width, generator=generator)
    return Conditions(states, pooled, torch.tensor([ids]))
