"""The whole thing with the real trainer: good and bad pictures, adapters that load, `train`."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.live_worker import Site
from worker.demo.run import journal_problems, load_back

#: Small, and with one preview each.
PARAMETERS = {
    "max_train_steps": 4,
    "resolution": 64,
    "validation_prompts": ["a circle"],
    "num_validation_images": 1,
}


@pytest.fixture
def real_site(site: Site, base_model_catalogue: Path) -> Site:
    """A site whose base model is there."""
    site.catalogue = base_model_catalogue
    return site


def picture(mode="RGB", size=(80, 60), kind="PNG", **options) -> bytes:
    out = BytesIO()
    colour = {"L": 90, "I;16": 40_000, "P": 3, "CMYK": (10, 200, 30, 0)}.get(mode, (200, 40, 90))
    if mode == "RGBA":
        colour = (200, 40, 90, 128)
    Image.new(mode, size, colour).save(out, kind, **options)
    return out.getvalue()


def rotated() -> bytes:
    image = Image.new("RGB", (80, 60), (10, 20, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    out = BytesIO()
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


def bomb() -> bytes:
    """A small file that unpacks to more pixels than are allowed."""
    out = BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


def test_jobs_good_and_bad_go_through_one_worker_with_the_real_trainer(real_site, tiny_base_model):
    """One worker and one warm trainer after another; each job has its own outcome."""
    site = real_site
    odd = {
        "cmyk.jpg": picture("CMYK", kind="JPEG"),
        "16bit.png": picture("I;16"),
        "palette.png": picture("P"),
        "alpha.png": picture("RGBA"),
        "grey.jpg": picture("L", kind="JPEG"),
        "rotated.jpg": rotated(),
    }
    bad = {
        "text.jpg": b"this is not a picture",
        "cut.jpg": picture(kind="JPEG", size=(300, 300))[:700],
        "dot.png": picture(size=(1, 1)),
        "bomb.png": bomb(),
    }
    odd_urls = [site.put_picture(f"odd/{name}", body) for name, body in odd.items()]
    bad_urls = [site.put_picture(f"bad/{name}", body) for name, body in bad.items()]

    def job(name, urls, **parameters):
        message = site.message(name, image_urls=urls, parameters={**PARAMETERS, **parameters})
        site.publish(message)
        return site.wait_for_end(name, 120)

    with site.worker("-m", "worker.cli", "run") as worker:
        trained = job("odd-pictures-train", odd_urls)
        skipped = job("bad-ones-are-left-out", odd_urls[:1] + bad_urls)
        refused = job("unless-the-job-says-fail", odd_urls[:1] + bad_urls, on_bad_image="fail")
        none_left = job("all-bad", bad_urls)
        too_few = job("batch-too-large", odd_urls[:1] + bad_urls[:1], train_batch_size=2)
        unknown = job("no-such-layer", odd_urls, target_modules=["to_z"])
        again = job("and-the-next-job", odd_urls)

    assert trained.event == "complete", trained.json
    assert trained.json["metadata"]["images_used"] == len(odd)
    folder = trained.json["model_url"].rpartition("/")[0]
    stored = {f"s3://{site.results}/{key}" for key in site.objects("models/")}
    seen = trained.json["metadata"]
    assert seen["report_url"] == f"{folder}/report.html"
    shown = [preview[name] for preview in seen["previews"] for name in ("before", "after")]
    assert shown
    assert {seen["report_url"], seen["preview_grid_url"], *shown} <= stored
    assert journal_problems(site.journal("odd-pictures-train")) == []

    assert skipped.event == "complete", skipped.json
    left_out = {
        item["source"]: item["reason"] for item in skipped.json["metadata"]["images_skipped"]
    }
    assert list(left_out) == bad_urls
    assert "not a picture" in left_out[bad_urls[0]]
    assert "damaged or cut off" in left_out[bad_urls[1]]
    assert "1 × 1" in left_out[bad_urls[2]]
    assert "pixels" in left_out[bad_urls[3]]

    for end in (refused, none_left):
        assert end.json["error_code"] == "INVALID_IMAGE"
        assert all(url in end.json["error_message"] for url in bad_urls)
        assert str(site.folder) not in end.json["error_message"]
    assert too_few.json["error_code"] == "INVALID_JOB"
    assert "train_batch_size is 2, but only 1" in too_few.json["error_message"]
    assert unknown.json["error_code"] == "INVALID_JOB"
    assert "to_z" in unknown.json["error_message"]
    assert again.event == "complete"

    check_adapter(site, trained.json["model_url"], tiny_base_model)
    stages = [line["stage"] for line in worker.log("stage_ended")[:6]]
    assert stages == [
        *("preparing", "downloading", "caching", "training", "exporting", "uploading"),
    ]
    assert len(worker.log("precision_changed")) >= 1
    assert len(site.objects("jobs/odd-pictures-train/")) > 0


def check_adapter(site: Site, url: str, model: Path) -> None:
    """What a user of the bucket does: one line in plain diffusers, for both files."""
    prefix = url.removeprefix(f"s3://{site.results}/").rpartition("/")[0] + "/"
    objects = site.objects(prefix)
    manifest = json.loads(objects[prefix + "manifest.json"])
    for name in ("lora_weights.safetensors", "lora_weights.kohya.safetensors"):
        path = site.folder / name
        path.write_bytes(objects[prefix + name])
        assert load_back(model, path) == 2.0
        assert name in manifest["files"]


def test_a_base_model_with_nan_fails_the_job_by_its_loss(real_site, tiny_base_model, tmp_path):
    import shutil

    import safetensors.torch
    import torch

    broken = tmp_path / "broken"
    shutil.copytree(tiny_base_model, broken)
    [weights] = (broken / "unet").glob("*.safetensors")
    tensors = safetensors.torch.load_file(weights)
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], torch.nan)
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    real_site.catalogue = tmp_path / "broken.toml"
    real_site.catalogue.write_text(
        f'[tiny]\nlocation = "{broken}"\n[gone]\nlocation = "{tmp_path}/gone"\n'
    )
    url = real_site.put_picture("a.png", picture())
    with real_site.worker("-m", "worker.cli", "run"):
        ends = {}
        for name, model in (("nan", "tiny"), ("missing", "gone")):
            parameters = {**PARAMETERS, "base_model": model}
            real_site.publish(real_site.message(name, image_urls=[url], parameters=parameters))
            ends[name] = real_site.wait_for_end(name, 120).json
    assert ends["nan"]["error_code"] == "NON_FINITE_LOSS"
    assert "step 1" in ends["nan"]["error_message"]
    assert ends["missing"]["error_code"] == "BASE_MODEL_UNAVAILABLE"
    assert "gone" in ends["missing"]["error_message"]
    assert str(tmp_path) not in ends["missing"]["error_message"]


def test_train_on_a_folder_of_photographs_writes_both_adapter_files(
    tmp_path, base_model_catalogue, tiny_base_model
):
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(picture(size=(640, 480), kind="JPEG"))
    (photos / "two.JPEG").write_bytes(picture(size=(333, 777), kind="JPEG"))
    (photos / "three.png").write_bytes(picture(size=(120, 90)))
    (photos / "one.txt").write_text("a holiday")
    (photos / "notes.doc").write_text("not a picture")
    output = tmp_path / "out"
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "worker.cli", "train", "--images", str(photos)),
            *("--output", str(output), "--trigger-word", "sks"),
            *("-p", "max_train_steps=3", "-p", "resolution=64", "-p", "mixed_precision=no"),
        ],
        env={
            **os.environ,
            "BASE_MODELS_FILE": str(base_model_catalogue),
            "DEFAULT_BASE_MODEL": "tiny",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    for name in ("lora_weights.safetensors", "lora_weights.kohya.safetensors"):
        assert load_back(tiny_base_model, output / name) == 2.0
    manifest = json.loads((output / "manifest.json").read_text())
    assert [item["caption"] for item in manifest["inputs"]] == ["a holiday", "sks", "sks"]
    assert "3 steps" in answer.stdout
    assert (output / "previews" / "grid.png").is_file()


def test_a_finished_job_is_reproduced_bit_for_bit_and_a_changed_picture_is_named(
    tmp_path, base_model_catalogue
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("one.png", (90, 70)), ("two.png", (64, 64))):
        (photos / name).write_bytes(picture(size=size))
    environment = {
        **os.environ,
        "BASE_MODELS_FILE": str(base_model_catalogue),
        "DEFAULT_BASE_MODEL": "tiny",
    }

    def lora_worker(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "worker.cli", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    output = tmp_path / "out"
    rules = [
        f"-p{rule}"
        for rule in (
            *("max_train_steps=3", "resolution=64", "rank=4"),
            *('validation_prompts=["a circle"]', "num_validation_images=1"),
        )
    ]
    trained = lora_worker("train", "--images", photos, "--output", output, *rules)
    assert trained.returncode == 0, trained.stderr
    manifest = output / "manifest.json"

    again = lora_worker("reproduce", manifest)
    assert again.returncode == 0, again.stderr
    assert "agree with the manifest, bit for bit" in again.stdout

    renamed = tmp_path / "elsewhere"
    photos.rename(renamed)
    content = json.loads(manifest.read_text())
    content["seed"] += 1
    content["versions"]["torch"] = "1.0"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    different = lora_worker("reproduce", other, "--pictures", renamed)
    assert different.returncode == 1, different.stderr
    assert "not reproduced: lora_weights.kohya.safetensors and" in different.stdout
    assert "torch" in different.stdout
    assert "1.0 then" in different.stdout

    (renamed / "two.png").write_bytes(picture(size=(65, 64)))
    changed = lora_worker("reproduce", manifest, "--pictures", renamed)
    assert changed.returncode == 65
    assert "two.png" in changed.stderr
    assert "one.png" not in changed.stderr
