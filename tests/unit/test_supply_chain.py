"""What is installed is what was tried: every package pinned, every dependency with a floor."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+_-]*")


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (one for group in project["optional-dependencies"].values() for one in group)
    every = [*project["dependencies"], *extras]
    return [one for one in every if name_of(one) != "lora-worker"]


def test_every_package_is_pinned_to_one_version():
    assert [line for line in pins() if not PIN.fullmatch(line)] == []
    names = [name_of(line) for line in pins()]
    assert len(names) == len(set(names))


def test_every_dependency_has_a_floor_and_a_pin():
    pinned = {name_of(line) for line in pins()}
    for requirement in requirements():
        assert ">=" in requirement, requirement
        assert name_of(requirement) in pinned, requirement


def test_nothing_comes_from_an_address():
    for line in (*pins(), *requirements()):
        assert "@" not in line
        assert "://" not in line
