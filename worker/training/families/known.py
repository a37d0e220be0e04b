"""The families that can be trained, and which one a denoiser is of."""

from collections.abc import Mapping
from typing import Any

from worker.contract.base_model import Family as FamilyName
from worker.training.families.family import Family
from worker.training.families.sd1 import StableDiffusion1
from worker.training.families.sd2 import StableDiffusion2
from worker.training.families.sd3 import StableDiffusion3
from worker.training.families.sdxl import StableDiffusionXL

#: Each family by its name in the catalogue.
FAMILIES: dict[FamilyName, Family] = {
    family.name: family
    for family in (
        StableDiffusion1(),
        StableDiffusion2(),
        StableDiffusionXL(),
        StableDiffusion3(),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a denoiser of this configuration.

    Raises:
        ValueError: it is of none.
    """
    for family in FAMILIES.values():
        if family.owns(config):
            return family
    raise ValueError(f"addition_embed_type {config.get('addition_embed_type')!r} is of no family")
