"""Which values does an adapter drop? All masks of a pass come from one draw.

The draw's size follows from what goes through the model, and its numbers from the random state that
the pass begins with. So the masks of a job do not depend on who computes it beside which others,
nor on whether a layer is run a second time to save memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from worker.training.compiling import as_written


class Dropping(Protocol):
    """Layers that drop some of their one input, each its own.

    Attributes:
        mask: 1 where a value is kept, flat; None where all are.
        noted: where to note how many values a mask has.
    """

    mask: torch.Tensor | None
    noted: list[int] | None


class Masks:
    """Draws the masks of all layers of a UNet at once."""

    def __init__(self, groups: Sequence[Dropping]) -> None:
        self._groups = groups
        self._elements: dict[torch.Size, list[int]] = {}

    def elements(
        self, unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[int]:
        """How many values each group's mask has in a pass of these arguments of the UNet.

        Of a size of samples that was not met before they are counted in a forward pass.
        """
        sample = args[0] if args else kwargs["sample"]
        shape = sample.shape[1:]
        if shape not in self._elements:
            found = self._counted(unet, args, kwargs)
            self._elements[shape] = [count // len(sample) for count in found]
        return [count * len(sample) for count in self._elements[shape]]

    def hand_out(self, masks: Sequence[torch.Tensor] | None) -> None:
        """Give each group its mask, or none."""
        for place, group in enumerate(self._groups):
            group.mask = masks[place] if masks else None

    @torch.no_grad()
    def _counted(
        self, unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[int]:
        notes: list[list[int]] = [[] for _ in self._groups]
        for group, note in zip(self._groups, notes, strict=True):
            group.mask, group.noted = None, note
        try:
            with as_written(unet):
                unet.forward(*args, **kwargs)
        finally:
            for group in self._groups:
                group.noted = None
        return [count for [count] in notes]


def new_mask(elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Room for a mask. A CPU multiplies slowly by anything but the dtype of the other factor."""
    kind = dtype if device.type == "cpu" else torch.bool
    return torch.empty(elements, dtype=kind, device=device)
