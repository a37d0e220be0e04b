"""Fields that go by more than one name, as the published schema says it.

Pydantic reads a field by any of its names; its JSON Schema knows the first one only, and would
refuse messages that are valid.
"""

from typing import Any

from pydantic import AliasChoices, BaseModel


def document_other_names(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add every name of every field of `model` to `schema`, in place: for `json_schema_extra`.

    A required field may come by any of them. Where unknown fields are refused, a field under two
    of its names is refused too.
    """
    properties = schema.get("properties", {})
    rules: list[dict[str, Any]] = []
    required = list(schema.get("required", ()))
    for field in model.model_fields.values():
        alias = field.validation_alias
        if not isinstance(alias, AliasChoices):
            continue
        first, *others = map(str, alias.choices)
        for other in others:
            properties[other] = properties[first] | {"description": f"Another name of {first}."}
            if model.model_config.get("extra") == "forbid":
                rules.append({"not": {"required": [first, other]}})
        if first in required:
            required.remove(first)
            rules.append({"anyOf": [{"required": [name]} for name in (first, *others)]})
    if "required" in schema:
        schema["required"] = required
    if rules:
        schema["allOf"] = rules
