"""Which base models may a job ask for? One row of `config/base_models.toml` each."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class BaseModelEntry(BaseModel):
    """A base model that the operator allows.

    Attributes:
        name: what a message's `parameters.base_model` says.
        location: a folder in diffusers' layout, or an id on the model hub.
        family: which class of model it is; decides how it is trained and exported.
        revision: the hub's commit; ignored for a folder.
        variant: the files' variant, such as `fp16`; none for plain files.
        digest: `sha256:…` of the weights, as `lora-worker models list --digest` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    location: str = Field(min_length=1)
    family: Literal["sd1"] = "sd1"
    revision: str | None = None
    variant: str | None = None
    digest: str | None = Field(None, pattern=r"^sha256:[0-9a-f]{64}$")


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
