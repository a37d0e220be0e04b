"""What a backend imports is light: it has to live in a web server, beside other people's code."""

import subprocess
import sys

import pytest

#: What the standard models need; everything else is a surprise in somebody's web server.
PYDANTIC = {
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
}


def third_parties(statement: str) -> set[str]:
    """Top-level modules that a new process imports by `statement`, beside ours and Python's."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(names - set(sys.stdlib_module_names) - {'worker'}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # The interpreter's own build data is in no list of the standard library.
    return {name for name in answer.stdout.split() if not name.startswith("_sysconfigdata")}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("from worker.client.receiving import verify_webhook", PYDANTIC),
        ("from worker.client.publishing import LoraJobClient", PYDANTIC | {"pika"}),
    ],
)
def test_a_half_of_the_client_imports_only_what_it_uses(statement, allowed):
    found = third_parties(statement)
    assert found <= allowed
    assert "pydantic" in found


def test_the_client_leaves_the_backend_s_logging_alone():
    program = (
        "import logging\n"
        "import worker.client.publishing\n"
        "print(logging.getLogger('pika').level, logging.getLogger().handlers)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["0", "[]"]
