"""What is said of GPUs, memory and model files that are not as they should be."""

import json
import sys

import pytest

from worker.contract.base_model import BaseModelEntry
from worker.jobs import machine_checks
from worker.jobs.model_files import digest, folder_of, missing, weight_bytes
from worker.settings import load_settings

GPU = {"ok": True, "reason": "", "name": "H200", "cuda": "13.0"}


def tried(answer):
    program = f"print({json.dumps(answer)!r})" if isinstance(answer, dict) else answer
    return machine_checks.try_gpu("0", "580.1", (sys.executable, "-c", program))


def test_a_gpu_that_computes_is_named_with_its_memory_and_driver():
    found = tried({**GPU, "free_bytes": 100 * 2**30, "total_bytes": 139 * 2**30})
    assert found.verdict == "ok"
    for part in ("H200", "100.0 of 139.0 GiB free", "driver 580.1", "CUDA 13.0"):
        assert part in found.sentence


def test_a_gpu_that_somebody_else_fills_is_worth_a_word():
    found = tried({**GPU, "free_bytes": 2**30, "total_bytes": 24 * 2**30})
    assert (found.verdict, "that is little" in found.sentence) == ("warning", True)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"ok": False, "reason": "PyTorch sees no CUDA device"}, "sees no CUDA device"),
        ({"ok": False, "reason": "products in torch.float32 come out wrong"}, "come out wrong"),
        ("raise SystemExit(3)", "cannot be tried"),
        ("print('no json')", "cannot be tried"),
        ("pass", "cannot be tried"),
    ],
)
def test_a_gpu_that_does_not_compute_fails(answer, says):
    found = tried(answer)
    assert found.verdict == "failed"
    assert says in found.sentence


def test_the_real_check_says_that_there_is_no_gpu_here(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine_checks.try_gpu("", "none")
    assert found.verdict == "failed"
    assert "sees no CUDA device" in found.sentence


def test_memory_is_the_lesser_of_the_machines_and_the_containers(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    available = machine_checks.available_memory_bytes(tmp_path / "meminfo", tmp_path)
    assert available == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert machine_checks.available_memory_bytes(tmp_path / "meminfo", tmp_path) == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_checks.available_memory_bytes(tmp_path / "meminfo", tmp_path) == available


@pytest.fixture
def model(tmp_path):
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    for part in ("text_encoder", "unet", "vae"):
        (tmp_path / part / "model.safetensors").write_bytes(b"12345")
    return BaseModelEntry(name="tiny", location=str(tmp_path)), tmp_path


def settings_with(model, **changes):
    _, folder = model
    catalogue = folder / "models.toml"
    catalogue.write_text(f'[tiny]\nlocation = "{folder}"\n[other]\nlocation = "nobody/nothing"\n')
    return load_settings(base_models_file=catalogue, default_base_model="tiny", **changes)


def test_memory_that_the_model_does_not_fit_into_fails(model, mocker):
    settings = settings_with(model)
    mocker.patch.object(machine_checks, "available_memory_bytes", return_value=14)
    [found] = machine_checks.memory(settings)
    assert (found.verdict, "tiny alone has" in found.sentence) == ("failed", True)
    mocker.patch.object(machine_checks, "available_memory_bytes", return_value=20)
    assert machine_checks.memory(settings)[0].verdict == "ok"
    [found] = machine_checks.memory(settings_with(model, trainers_per_gpu=2))
    assert (found.verdict, "2 trainers" in found.sentence) == ("warning", True)


def test_only_the_default_models_files_are_a_reason_not_to_start(model):
    findings = machine_checks.model_files(settings_with(model))
    found = {f.sentence.split()[0]: f.verdict for f in findings}
    assert found == {"tiny": "ok", "base": "warning"}
    [other] = [f for f in findings if f.verdict == "warning"]
    assert "nobody/nothing is neither a folder here nor in the hub's cache" in other.sentence


def test_a_model_without_a_part_its_weights_or_its_variant_is_not_whole(model):
    entry, folder = model
    assert missing(entry, folder) == []
    assert weight_bytes(entry, folder) == 15
    half = entry.model_copy(update={"variant": "fp16"})
    assert "unet/*.fp16.safetensors is missing" in missing(half, folder)
    (folder / "unet" / "model.fp16-00001-of-00002.safetensors").touch()
    assert "unet/*.fp16.safetensors is missing" not in missing(half, folder)
    index = {"unet": ["diffusers", "X"], "text_encoder_2": ["t", "Y"], "safety_checker": ["a", "B"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", **index}))
    assert missing(entry, folder) == ["text_encoder_2/ is missing"]


def test_a_model_may_be_without_t5_but_not_have_half_of_it(model):
    entry, folder = model
    index = {"unet": ["diffusers", "X"], "text_encoder_3": ["t", "Y"], "tokenizer_3": ["t", "Z"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", **index}))
    assert missing(entry, folder) == []
    (folder / "text_encoder_3").mkdir()
    assert missing(entry, folder) == ["text_encoder_3/*.safetensors is missing"]


def test_the_digest_changes_with_every_byte_of_the_weights(model):
    entry, folder = model
    before = digest(entry, folder)
    (folder / "vae" / "config.json").write_text('{"other": 1}')
    assert digest(entry, folder) == before
    (folder / "vae" / "model.safetensors").write_bytes(b"12346")
    assert digest(entry, folder) != before


def test_a_model_of_the_hub_is_found_in_its_cache_by_revision(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    entry = BaseModelEntry(name="m", location="some/model")
    assert folder_of(entry) is None
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc\n")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    assert folder_of(entry) == cached / "snapshots" / "abc"
    assert folder_of(entry.model_copy(update={"revision": "abc"})) == cached / "snapshots" / "abc"
    assert folder_of(entry.model_copy(update={"revision": "def"})) is None


def test_jobs_at_a_time_need_a_disk_for_all_of_them(monkeypatch, tmp_path, mocker):
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    usage = mocker.patch("shutil.disk_usage")
    usage.return_value.free = 2 * machine_checks.SPARE_DISK_BYTES
    assert [found.verdict for found in machine_checks.disk(load_settings())] == ["ok"]
    monkeypatch.setenv("PACK_SLOTS", "8")
    [found] = machine_checks.disk(load_settings())
    assert (found.verdict, "PACK_SLOTS=8 needs 4096 MiB" in found.sentence) == ("warning", True)
