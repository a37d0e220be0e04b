"""Which base model is a job trained on, and what do its parameters become there?"""

from collections.abc import Mapping
from typing import Any

from worker.contract.base_model import BaseModelEntry
from worker.contract.combinations import base_model_conflicts
from worker.contract.errors import InvalidJob
from worker.contract.parameters import TrainingParameters
from worker.contract.target_modules import in_family


def chosen_base_model(
    parameters: TrainingParameters, catalogue: Mapping[str, BaseModelEntry], default: str
) -> BaseModelEntry:
    """The base model that a job asks for, or the operator's default.

    Raises:
        InvalidJob: it is not in the catalogue, or cannot be trained with these parameters.
    """
    name = parameters.base_model or default
    entry = catalogue.get(name)
    if entry is None:
        known = ", ".join(sorted(catalogue))
        what = f"{name!r} is not in this worker's catalogue; it has {known}"
        raise InvalidJob([("parameters.base_model", what)])
    if found := base_model_conflicts(dict(for_base_model(parameters, entry)), entry.family):
        raise InvalidJob([(f"parameters.{field}", what) for field, what in found])
    return entry


def for_base_model(parameters: TrainingParameters, base: BaseModelEntry) -> TrainingParameters:
    """`parameters` with what depends on the base model.

    Where the job says no resolution it is the base model's, and a preset names the layers that it
    has in this family.
    """
    update: dict[str, Any] = {}
    layers = in_family(parameters.target_modules, base.family)
    if layers != parameters.target_modules:
        update["target_modules"] = layers
    if "resolution" not in parameters.model_fields_set:
        update["resolution"] = base.usual_resolution
    return parameters.model_copy(update=update) if update else parameters
