"""The files that come from the models. `make generate` writes them; a test holds them equal."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from worker.contract.schema import json_schema
from worker.settings import env_example, settings_table

_MARKS = re.compile(r"(<!-- settings -->\n).*(<!-- /settings -->)", re.DOTALL)


def _readme(text: str) -> str:
    return _MARKS.sub(lambda marks: marks[1] + settings_table() + marks[2], text)


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
    "docs/contract.schema.json": lambda _: json.dumps(json_schema(), indent=2) + "\n",
    "README.md": _readme,
    "config/kubernetes/components/monitoring/prometheus-rule.yaml": _prometheus_rule,
}


def main() -> None:
    """Write them all."""
    for path, make in GENERATED.items():
        file = Path(path)
        file.write_text(make(file.read_text() if file.exists() else ""))


if __name__ == "__main__":
    main()
