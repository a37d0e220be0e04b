"""What the image promises, as far as its Dockerfile can be read without building it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker.jobs.devices import Share
from worker.jobs.trainer_start import trainer_environment
from worker.settings import Settings

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "Dockerfile").read_text()

#: One instruction a line.
LINES = [
    line
    for line in re.sub(r"\\\n\s*", "", TEXT).splitlines()
    if line and not line.lstrip().startswith("#")
]
FINAL = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM")) :]


def instruction(name):
    [found] = [line.removeprefix(name).strip() for line in FINAL if line.startswith(f"{name} ")]
    return found


def environment():
    return dict(re.findall(r"(\w+)=(\S+)", instruction("ENV")))


def seen_by_a_trainer():
    return trainer_environment(environment(), share=Share(None), allow_hub=False)


def test_the_linter_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_it_runs_as_the_user_that_the_manifests_name():
    assert instruction("USER") == "10001:10001"
    assert "useradd --uid 10001" in TEXT


def test_it_needs_no_syntax_from_a_registry_and_names_none():
    assert not re.search(r"^#\s*syntax", TEXT, re.MULTILINE | re.IGNORECASE)
    assert not re.search(r"https?://", TEXT)


def test_process_one_passes_signals_on_and_the_verb_is_the_workers():
    assert instruction("ENTRYPOINT") == '["tini", "-s", "--", "lora-worker"]'
    assert instruction("CMD") == '["run"]'
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert '["lora-worker", "health"]' in instruction("HEALTHCHECK")


def test_its_settings_exist_and_lie_where_it_may_write():
    assigned = environment()
    ours = {name for name in assigned if name.lower() in Settings.model_fields}
    assert ours == {"WORK_DIR", "HTTP_ADDRESS", "HTTP_PORT", "BASE_MODELS_FILE"}
    volumes = re.findall(r'"(/\w+)"', instruction("VOLUME"))
    assert volumes == ["/work", "/models"]
    for name in ("WORK_DIR", "HOME", "HF_HOME"):
        assert any(assigned[name].startswith(volume) for volume in volumes)
    assert instruction("EXPOSE") == assigned["HTTP_PORT"]


def test_a_trainer_finds_the_driver_where_gke_puts_it():
    seen = seen_by_a_trainer()
    assert seen["PATH"].split(":")[-1] == "/usr/local/nvidia/bin"
    assert seen["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"


def test_a_trainers_compiled_kernels_lie_where_they_may_run():
    """Not in /tmp, a tmpfs of docker's without the right to execute."""
    assert seen_by_a_trainer()["TORCHINDUCTOR_CACHE_DIR"].startswith("/work/")


def test_what_changes_often_comes_last():
    order = [
        next(i for i, line in enumerate(FINAL) if part in line)
        for part in ("COPY --from=dependencies", "COPY --from=application", "ARG REVISION", "LABEL")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("label", ["title", "description", "licenses", "version", "revision"])
def test_it_says_what_it_is(label):
    assert f"org.opencontainers.image.{label}=" in instruction("LABEL")


def test_everything_that_is_copied_may_be_copied():
    """`.dockerignore` shuts everything out but what it names."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for line in LINES
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert {word for word in copied if not any(word.startswith(name) for name in allowed)} == set()
    assert all((ROOT / word).exists() for word in copied)
