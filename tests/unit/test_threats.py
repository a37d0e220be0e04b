"""Every row of the threat model names the tests that hold it, and each of them is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def rows() -> list[list[str]]:
    section = PAGE.read_text().partition("## Threats")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def collected_from(name: str) -> dict[str, ast.FunctionDef]:
    """The tests that pytest collects from the files of this name, by their own."""
    return {
        node.name: node
        for file in TESTS.rglob(name)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def named(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`(test_\w+\.py)::(test_\w+)`", cell)


def test_the_table_is_there():
    assert len(rows()) >= 25
    assert all(len(row) == 4 and all(row) for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}: {row[1][:40]}")
def test_each_threat_has_tests_and_they_exist(row):
    found = named(row[3])
    assert found, "a row without a test"
    assert len(found) == row[3].count("::"), "a test that is not named as file.py::test"
    for file, test in found:
        assert test in collected_from(file), f"{file}::{test} is not there"
        marks = [ast.unparse(one) for one in collected_from(file)[test].decorator_list]
        assert not [one for one in marks if "skip" in one or "xfail" in one or "gpu" in one]


def test_a_name_that_is_not_there_would_be_seen():
    assert "test_that_nobody_wrote" not in collected_from("test_threats.py")
    assert "test_the_table_is_there" in collected_from("test_threats.py")
    assert named("`test_a.py::test_b`, `test_c.py::test_d`") == [
        ("test_a.py", "test_b"),
        ("test_c.py", "test_d"),
    ]
