"""The files that come from the models. `make generate` writes them; a test holds them equal."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import AliasChoices, SecretStr

from worker.contract.asyncapi import asyncapi
from worker.contract.openapi import openapi
from worker.contract.parameters import TrainingParameters
from worker.contract.schema import json_schema
from worker.settings import Settings


def document(make: Callable[[], dict[str, Any]]) -> Callable[[str], str]:
    """A JSON file, whatever was in it."""
    return lambda _: json.dumps(make(), indent=2) + "\n"


def between_marks(name: str, make: Callable[[], str]) -> Callable[[str], str]:
    """A page of which the part between `<!-- name -->` and `<!-- /name -->` is made."""
    marks = re.compile(rf"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)

    def remade(text: str) -> str:
        if not marks.search(text):
            raise ValueError(f"there is no <!-- {name} --> with its <!-- /{name} -->")
        return marks.sub(lambda found: found[1] + make() + found[2], text)

    return remade


def env_example() -> str:
    """The text of `config/worker.env.example`: every variable, its line, its default."""
    lines = [
        "# Settings of lora-worker: copy, uncomment what you change.",
        "# Credentials of the store come from the AWS SDK's own names:",
        "# AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, …",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, tuple):
            default = ",".join(f"{item:g}" if isinstance(item, float) else item for item in default)
        if isinstance(default, bool):
            default = str(default).lower()
        lines += [
            "",
            f"# {field.description}{_choices(field.annotation)}",
            f"#{name.upper()}={'' if default is None else default}",
        ]
    return "\n".join(lines) + "\n"


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    *others, last = get_args(annotation)
    return f" One of {', '.join(others)} and {last}."


def settings_table() -> str:
    """The table of settings in docs/settings.md, in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for block in env_example().split("\n\n")[1:]:
        meaning, assignment = block.strip().split("\n")
        name, default = assignment.removeprefix("#").split("=", 1)
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {meaning[2:]} |")
    return "\n".join(rows) + "\n"


def parameters_table() -> str:
    """The training parameters, in Markdown: every name, default, bounds, meaning."""
    rows = ["| name | default | allowed | meaning |", "|---|---|---|---|"]
    properties = TrainingParameters.model_json_schema()["properties"]
    for name, field in TrainingParameters.model_fields.items():
        alias, schema = field.validation_alias, properties[name]
        names = map(str, alias.choices) if isinstance(alias, AliasChoices) else [name]
        default = schema.get("default")
        shown = "" if default is None else f"`{json.dumps(default)}`"
        told = ", ".join(f"`{each}`" for each in names)
        rows.append(f"| {told} | {shown} | {allowed(schema)} | {field.description} |")
    return "\n".join(rows) + "\n"


def allowed(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "anyOf" in schema:
        return ", ".join(filter(None, (allowed(each) for each in schema["anyOf"])))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number":
            low, high = schema.get("minimum"), schema.get("maximum")
            low_text = f"above {schema['exclusiveMinimum']:g}" if low is None else f"{low:g}"
            high_text = f"below {schema['exclusiveMaximum']:g}" if high is None else number(high)
            multiple = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
            return f"{low_text} … {high_text}{multiple}"
        case "array":
            return f"a list of at most {schema['maxItems']}"
        case "string":
            return "a name"
        case _:
            return ""


def number(value: float) -> str:
    """As a person writes it."""
    return "2^63 - 1" if value == 2**63 - 1 else f"{value:g}" if value < 1 else f"{value:,}"


def _prometheus_rule(_: str) -> str:
    """The alert rules as prometheus-operator takes them."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "lora-worker", "namespace": "lora-worker"},
        "spec": yaml.safe_load(Path("config/prometheus/alerts.yml").read_text()),
    }
    text = yaml.safe_dump(rule, sort_keys=False, width=100)
    return "# Made from config/prometheus/alerts.yml by `make generate`.\n" + text


#: Path from the top, and how its text is made from the one that is there.
GENERATED: dict[str, Callable[[str], str]] = {
    "config/worker.env.example": lambda _: env_example(),
    "docs/contract.schema.json": document(json_schema),
    "docs/contract.asyncapi.json": document(asyncapi),
    "docs/contract.openapi.json": document(openapi),
    "docs/contract.md": between_marks("parameters", parameters_table),
    "docs/settings.md": between_marks("settings", settings_table),
    "config/kubernetes/components/monitoring/prometheus-rule.yaml": _prometheus_rule,
}


def main() -> None:
    """Write them all."""
    for path, make in GENERATED.items():
        file = Path(path)
        file.write_text(make(file.read_text() if file.exists() else ""))


if __name__ == "__main__":
    main()
