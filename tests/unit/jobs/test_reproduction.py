"""What a manifest is trained from again, and how two trainings compare."""

import hashlib

import pytest

from worker.contract.dataset import PictureReport
from worker.contract.manifest import Manifest, TrainedPicture
from worker.contract.pipe import FinishedEvent, OutputFile
from worker.jobs.reproduction import (
    PicturesDiffer,
    compare,
    job_of,
    pictures_by_hash,
    pictures_by_source,
)
from worker.storage.bucket_list import BucketList
from worker.storage.image_sources import ImageSources
from worker.storage.images import ImageFetcher
from worker.storage.local import LocalStore

BODIES = {"one.png": b"first", "two.png": b"second"}


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, body in BODIES.items():
        (folder / name).write_bytes(body)
    return folder


@pytest.fixture
def manifest(finished, folder) -> Manifest:
    inputs = [
        TrainedPicture(source=(folder / name).as_uri(), sha256=digest(body), caption=f"a {name}")
        for name, body in BODIES.items()
    ]
    files = {"lora_weights.safetensors": "1" * 64, "report.html": "2" * 64}
    return finished(
        inputs=inputs, files=files, parameters={"rank": 4, "base_model": None, "seed": None}
    )[0]


def fetcher(tmp_path) -> ImageFetcher:
    return ImageFetcher(
        ImageSources(
            s3=LocalStore(tmp_path / "store", buckets=["media"]),
            gs_as_s3=False,
            buckets=BucketList((), own_bucket="results"),
            https_hosts=(),
            allow_files=True,
            max_bytes=1000,
        ),
        parallelism=2,
        deadline_seconds=5,
    )


def ended_with(output, manifest: Manifest, **files: str) -> FinishedEvent:
    """A training that left these adapters in `output`."""
    output.mkdir()
    (output / "manifest.json").write_text(manifest.model_dump_json())
    listed = [OutputFile(name=n, path="", bytes=1, sha256=sha) for n, sha in files.items()]
    return FinishedEvent(files=listed, steps=1, epochs=1, loss=0.1, metadata={})


def test_pictures_are_found_by_their_hashes_whatever_they_are_called(manifest, folder):
    (folder / "below").mkdir()
    (folder / "one.png").rename(folder / "below" / "renamed")
    found = pictures_by_hash(manifest, folder)
    assert [path.read_bytes() for path in found] == list(BODIES.values())


def test_a_picture_that_is_missing_or_has_changed_is_named_and_no_other(manifest, folder, tmp_path):
    (folder / "two.png").write_bytes(b"another")
    with pytest.raises(PicturesDiffer, match=r"two\.png") as missing:
        pictures_by_hash(manifest, folder)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    with pytest.raises(PicturesDiffer, match=r"two\.png has changed") as changed:
        pictures_by_source(manifest, fetcher(tmp_path), fetched)
    (folder / "two.png").unlink()
    with pytest.raises(PicturesDiffer, match=r"two\.png does not exist") as gone:
        pictures_by_source(manifest, fetcher(tmp_path), fetched)
    for caught in (missing, changed, gone):
        assert len(caught.value.problems) == 1


def test_the_job_is_the_one_that_was_trained(manifest, folder):
    job = job_of(manifest, pictures_by_hash(manifest, folder))
    assert [image.caption for image in job.images] == ["a one.png", "a two.png"]
    assert (job.seed, job.trigger_word, job.style_id) == (7, "hatchstyle", 10)
    assert job.parameters.rank == 4
    assert job.parameters.base_model == "sd"


def test_pictures_of_the_class_that_were_sent_are_wanted_again_and_drawn_ones_are_not(
    manifest, folder
):
    rules = manifest.parameters | {"with_prior_preservation": True, "class_prompt": "a shape"}
    of_class = folder / "of_class.png"
    of_class.write_bytes(b"third")
    row = PictureReport(
        index=2, source=of_class.as_uri(), sha256=digest(b"third"), caption="a shape"
    )
    bad = PictureReport(index=3, source="s3://b/bad.png", reason="it is damaged")
    sent = manifest.model_copy(update={"class_pictures": (row, bad), "parameters": rules})
    job = job_of(sent, pictures_by_hash(sent, folder))
    assert [image.url for image in job.class_images] == [of_class.as_uri()]
    assert len(job.images) == 2

    drawn = sent.model_copy(update={"class_pictures_made": True})
    of_class.unlink()
    job = job_of(drawn, pictures_by_hash(drawn, folder))
    assert job.class_images == ()
    assert job.parameters.class_prompt == "a shape"
    with pytest.raises(PicturesDiffer, match=r"of_class\.png"):
        pictures_by_hash(sent, folder)


def test_equal_adapters_agree_whatever_lies_beside_them(manifest, tmp_path):
    same = {"lora_weights.safetensors": "1" * 64, "report.html": "9" * 64}
    found = compare(manifest, ended_with(tmp_path / "o", manifest, **same), tmp_path / "o")
    assert found.agrees
    assert found.sentence().startswith("reproduced: lora_weights.safetensors")


def test_other_adapters_do_not_and_what_else_differs_is_said(manifest, tmp_path):
    later = manifest.model_copy(
        update={
            "versions": manifest.versions | {"torch": "3.0"},
            "environment": {"device": "NVIDIA H200"},
            "metadata": manifest.metadata | {"packing": {"slots": 8, "mean_company": 5.3}},
        }
    )
    other = ended_with(tmp_path / "o", later, **{"lora_weights.safetensors": "3" * 64})
    found = compare(manifest, other, tmp_path / "o")
    assert not found.agrees
    assert "not reproduced: lora_weights.safetensors differ" in found.sentence()
    assert "torch 3.0 here, 2.9 then" in found.sentence()
    assert "device NVIDIA H200 here, CPU then" in found.sentence()
    assert "jobs in a pass 5.3 here, 1.0 then" in found.sentence()


def test_another_base_model_of_the_same_name_is_said(manifest, tmp_path):
    base = manifest.base_model
    for number, (field, value, said) in enumerate(
        [
            ("hub_id", "example/other", "base model example/other here, example/stable then"),
            ("hub_id", None, "base model sd (a folder) here, example/stable then"),
            ("revision", "abc", "base model example/stable, revision abc here, example/stable"),
            ("variant", "fp16", "base model example/stable, variant fp16 here, example/stable"),
        ]
    ):
        later = manifest.model_copy(
            update={"base_model": base.model_copy(update={field: value, "license": "mit"})}
        )
        output = tmp_path / str(number)
        other = ended_with(output, later, **{"lora_weights.safetensors": "3" * 64})
        [because] = compare(manifest, other, output).because
        assert because.startswith(said)


def test_a_training_without_an_adapter_agrees_with_nothing(manifest, tmp_path):
    nothing = manifest.model_copy(update={"files": {}})
    assert not compare(nothing, ended_with(tmp_path / "o", nothing), tmp_path / "o").agrees
