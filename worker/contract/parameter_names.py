"""Which parameter does a name mean that is not known as it stands? For whoever mistyped it."""

import difflib

from pydantic import AliasChoices

from worker.contract.parameters import TrainingParameters

#: Names of options that other trainers have and this one does not, and what to do instead.
NOT_OFFERED: dict[str, str] = {
    "class_data_dir": "is not offered; the message's class_images are the pictures of the class",
    "class_images": "is not offered among parameters; it stands beside them in the message",
    "input_perturbation": "is not offered; noise_offset is",
    "validation_epochs": "is not offered; preview_points says how many times previews are drawn "
    "along the way",
}


def canonical_parameter(name: str) -> str | None:
    """The parameter that `name` names, itself or by an alias; none if it names none."""
    for field_name, field in TrainingParameters.model_fields.items():
        alias = field.validation_alias
        if name in (alias.choices if isinstance(alias, AliasChoices) else (field_name,)):
            return field_name
    return None


def nearest_parameter(name: str) -> str | None:
    """The known parameter (or alias) spelled most like `name`, if any is close."""
    known: list[str] = []
    for field_name, field in TrainingParameters.model_fields.items():
        alias = field.validation_alias
        known += (
            [str(c) for c in alias.choices] if isinstance(alias, AliasChoices) else [field_name]
        )
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None
