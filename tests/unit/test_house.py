"""The rooms keep to their floors: imports point down, torch stays in its room."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"

#: Each room and the rooms that it may import.
MAY_IMPORT = {
    "contract": set(),
    "settings": set(),
    "outbound": set(),
    "observability": {"contract"},
    "broker": {"observability"},
    "storage": {"outbound"},
    "webhooks": {"contract", "outbound", "observability"},
    "client": {"contract", "broker", "webhooks"},
    "report": {"contract"},
    "training": {"contract", "report"},
    "jobs": {
        *("contract", "settings", "outbound", "observability", "broker", "storage", "webhooks"),
    },
    "demo": {"contract", "settings", "storage", "broker", "client"},
    "cli": {
        *("contract", "settings", "observability", "broker", "storage", "client", "jobs", "demo"),
    },
}

TORCH_FAMILY = {"torch", "diffusers", "peft", "transformers", "accelerate", "safetensors"}
NETWORK = {"pika", "boto3", "botocore", "requests", "urllib3"}


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "worker":
                found |= {f"worker.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    folder = WORKER / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [WORKER / f"{room}.py"]


def test_every_room_is_in_the_plan():
    rooms = {path.stem for path in WORKER.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room):
    for file in files_of(room):
        used = {name.split(".")[1] for name in imports(file) if name.startswith("worker.")}
        above = used - MAY_IMPORT[room] - {room, "__version__"}
        assert not above, f"{file.relative_to(WORKER)} imports {sorted(above)}"


def test_no_room_runs_in_a_circle():
    def below(room: str, seen: tuple[str, ...] = ()) -> None:
        assert room not in seen, f"a circle: {seen}"
        for other in MAY_IMPORT[room]:
            below(other, (*seen, room))

    for room in MAY_IMPORT:
        below(room)


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - {"training", "demo"}))
def test_nothing_outside_training_and_demo_imports_torch(room):
    for file in files_of(room):
        heavy = {name.split(".")[0] for name in imports(file)} & TORCH_FAMILY
        assert not heavy, f"{file.relative_to(WORKER)} imports {sorted(heavy)}"


def test_training_does_not_reach_for_the_network():
    for file in files_of("training"):
        reached = {name.split(".")[0] for name in imports(file)} & NETWORK
        assert not reached, f"{file.relative_to(WORKER)} imports {sorted(reached)}"


def test_a_built_supervisor_has_not_imported_torch(tmp_path):
    (tmp_path / "models.toml").write_text('[tiny]\nlocation = "x"\n')
    program = (
        "import sys\n"
        "import worker.cli\n"
        "from worker.jobs.supervisor import Supervisor\n"
        "from worker.settings import load_settings\n"
        "Supervisor(load_settings())\n"
        f"print(sorted({TORCH_FAMILY!r} & set(sys.modules)))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "BASE_MODELS_FILE": str(tmp_path / "models.toml"),
            "DEFAULT_BASE_MODEL": "tiny",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip().splitlines()[-1] == "[]"


#: Modules whose files are programs, and calls that run what they are given.
RUNS_WHAT_IT_READS = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
RUNS_WHAT_IT_IS_GIVEN = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load"}


@pytest.mark.parametrize("file", sorted(WORKER.rglob("*.py")), ids=lambda file: file.stem)
def test_no_code_runs_what_it_reads(file):
    """Weights are safetensors, never pickles; no shell, no code of a model's repository."""
    assert not {name.split(".")[0] for name in imports(file)} & RUNS_WHAT_IT_READS
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in RUNS_WHAT_IT_IS_GIVEN, ast.unparse(node)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert given.get("shell") != "True", ast.unparse(node)
            assert given.get("use_safetensors", "True") == "True", ast.unparse(node)
            assert "trust_remote_code" not in given, ast.unparse(node)
