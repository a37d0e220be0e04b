"""The commands of docs/deployment.md name what there is."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
BLOCKS = re.findall(r"^ *```sh\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if line.strip()
]
INLINE = re.findall(r"`((?:docker|kubectl|make|lora-worker) [^`…]+)`", PAGE)


def words(command):
    return shlex.split(re.sub(r"\$\([^)]*\)", "X", command))


def test_there_are_commands():
    assert len(COMMANDS) > 10
    assert {words(command)[0] for command in COMMANDS if "=" not in words(command)[0]} == {
        "docker",
        "kubectl",
    }


def test_build_arguments_are_those_of_the_dockerfile():
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    used = {
        argument.partition("=")[0]
        for command in COMMANDS
        for before, argument in zip(words(command), words(command)[1:], strict=False)
        if before == "--build-arg"
    }
    assert used <= declared
    table = PAGE.partition("| build argument")[2].partition("\n\n")[0]
    cells = re.findall(r"^\|(.*?)\|", table, re.MULTILINE)
    assert {name for cell in cells for name in words_in(cell)} == declared


def words_in(cell):
    return re.findall(r"`(\w+)`", cell)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "docker compose" in c])
def test_compose_commands_name_profiles_services_and_variables_of_the_file(command):
    text = (ROOT / "docker-compose.yml").read_text()
    for name in re.findall(r"([A-Z_]+)=", command.partition("docker compose")[0]):
        assert f"${{{name}" in text
    [profile] = re.findall(r"--profile (\w+)", command)
    assert any(profile in service["profiles"] for service in SERVICES.values())
    for service in re.findall(r"--scale ([\w-]+)=", command):
        assert profile in SERVICES[service]["profiles"]


def test_every_variable_of_the_compose_file_has_its_row():
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    table = PAGE.partition("| variable | default | |")[2].partition("\n\n")[0]
    named = {
        name for row in re.findall(r"^\|(.*?)\|", table, re.MULTILINE) for name in words_in(row)
    }
    assert named == asked


def test_folders_and_containers_of_kubectl_commands_are_there():
    folders = re.findall(r"-k (\S+)", " ".join([*COMMANDS, *INLINE]))
    assert folders
    for folder in folders:
        assert (ROOT / folder / "kustomization.yaml").is_file()
    for path in re.findall(r"`((?:overlays|components|base|models)(?:/[\w.-]+)*)`", PAGE):
        assert (ROOT / "config" / "kubernetes" / path).exists(), path


def test_it_counts_the_policies_and_says_how_to_see_them():
    """No AMQP client can: neither `doctor` nor `topology show`."""
    definitions = json.loads((ROOT / "config" / "rabbitmq" / "definitions.json").read_text())
    assert len(definitions["policies"]) == 3
    assert re.findall(r"(\w+) policies", PAGE) == ["three", "three"]
    assert "Policies they cannot see: `rabbitmqctl list_policies`." in PAGE


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in INLINE:
        if command.startswith("make "):
            assert command.split()[1] in targets


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", PAGE):
        file, _, anchor = target.partition("#")
        text = (ROOT / "docs" / file).resolve().read_text() if file else PAGE
        if anchor:
            titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
