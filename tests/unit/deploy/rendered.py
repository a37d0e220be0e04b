"""The manifests as kustomize renders them, and what is asked of all of them."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "config" / "kubernetes"

#: What an operator applies.
OVERLAYS = ("overlays/warm-pool", "overlays/one-shot", "models")

#: kustomize of this major version knows components and `labels`.
_KUSTOMIZE = 5


def needs_kustomize() -> None:
    """Skip where there is no kubectl that can render; `make test-tools` says how to get one."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    answer = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout).get("kustomizeVersion", "v0")
    if int(found.lstrip("v").split(".")[0]) < _KUSTOMIZE:
        pytest.skip(f"kubectl's kustomize is {found}")


@functools.cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """All resources of an overlay, in order."""
    needs_kustomize()
    return render(KUBERNETES / overlay)


def render(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder."""
    answer = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return list(yaml.safe_load_all(answer.stdout))


def one(overlay: str, kind: str, name: str = "lora-worker") -> dict[str, Any]:
    """The resource of this kind and name."""
    [found] = [
        resource
        for resource in rendered(overlay)
        if resource["kind"] == kind and resource["metadata"]["name"] == name
    ]
    return found


def pod_template(overlay: str) -> dict[str, Any]:
    """The pod of an overlay's workers."""
    if overlay == "overlays/one-shot":
        template = one(overlay, "ScaledJob")["spec"]["jobTargetRef"]["template"]
    elif overlay == "models":
        template = one(overlay, "Job", "models-pull")["spec"]["template"]
    else:
        template = one(overlay, "Deployment")["spec"]["template"]
    assert isinstance(template, dict)
    return template


def settings_of(overlay: str) -> dict[str, str]:
    """The ConfigMap that the pods of an overlay name."""
    container = pod_template(overlay)["spec"]["containers"][0]
    [name] = [
        source["configMapRef"]["name"]
        for source in container["envFrom"]
        if "configMapRef" in source
    ]
    data = one(overlay, "ConfigMap", name)["data"]
    assert isinstance(data, dict)
    return data
