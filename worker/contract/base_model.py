"""Which base models may a job ask for? One row of `config/base_models.toml` each."""

import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Kinds of base models that can be trained: Stable Diffusion 1.x, 2.x, XL and 3.
Family = Literal["sd1", "sd2", "sdxl", "sd3"]

#: Side of the pictures that a family was made with, pixels.
_RESOLUTION: dict[Family, int] = {"sd1": 512, "sd2": 768, "sdxl": 1024, "sd3": 1024}


class BaseModelEntry(BaseModel):
    """A base model that the operator allows.

    Attributes:
        name: what a message's `parameters.base_model` says.
        location: a folder in diffusers' layout, or an id on the model hub.
        family: which class of model it is; decides how it is trained and exported.
        revision: the hub's commit; ignored for a folder.
        variant: the files' variant, such as `fp16`; none for plain files.
        resolution: side of the pictures where a job does not say, pixels; by default the family's.
        license: the model hub's identifier of its licence, for the adapter's card.
        digest: `sha256:…` of the weights, as `lora-worker models list --digest` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    location: str = Field(min_length=1)
    family: Family = "sd1"
    revision: str | None = None
    variant: str | None = None
    resolution: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    license: str | None = None
    digest: str | None = Field(None, pattern=r"^sha256:[0-9a-f]{64}$")

    @property
    def usual_resolution(self) -> int:
        """Side of the pictures where a job does not say, pixels."""
        return self.resolution or _RESOLUTION[self.family]

    @property
    def hub_id(self) -> str | None:
        """Its id on the model hub, if it lies there."""
        is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", self.location) and self.location[0] != "."
        return self.location if is_id else None


class CatalogueError(ValueError):
    """The catalogue cannot be used; the text names the file and the row."""


def load_catalogue(path: Path) -> dict[str, BaseModelEntry]:
    """Read the catalogue: one table a model, `[name]` with `location` and the rest.

    Relative locations that exist beside the catalogue are read as folders there.

    Raises:
        CatalogueError: the file is missing, is not TOML, or a row is not valid.
    """
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"the base-model catalogue {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError(f"the base-model catalogue {path} cannot be read: {error}") from None
    catalogue = {}
    for name, row in rows.items():
        try:
            entry = BaseModelEntry.model_validate({"name": name, **row})
        except (ValidationError, TypeError) as error:
            raise CatalogueError(f"row [{name}] of {path} is not valid: {error}") from None
        beside = path.parent / entry.location
        if beside.is_dir():
            entry = entry.model_copy(update={"location": str(beside.resolve())})
        catalogue[name] = entry
    if not catalogue:
        raise CatalogueError(f"the base-model catalogue {path} has no row")
    return catalogue
