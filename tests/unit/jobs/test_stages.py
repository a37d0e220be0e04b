"""The stages in the supervisor: what is trained gets stored, what is told to stop stops."""

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.contract.job import TrainingJob, parse_message
from worker.contract.pipe import FinishedEvent, OutputFile, StopCommand
from worker.jobs.claimed_job import Claimed, Interrupted
from worker.jobs.record import CheckpointPointer, JobRecord
from worker.jobs.stages import StageRunner
from worker.storage.bucket_list import BucketList
from worker.storage.image_sources import ImageSources
from worker.storage.images import ImageFetcher
from worker.storage.local import LocalStore
from worker.storage.store import ObjectUrl


class Told:
    """A stop command that comes when the trainer is done."""

    def __init__(self, reason):
        self.reason, self.now = reason, threading.Event()

    def __call__(self):
        return StopCommand(reason=self.reason) if self.now.is_set() else None


class FinishingSlot:
    """A trainer slot whose job ends at once; `then` happens just before."""

    def __init__(self, then=lambda: None, *, named=None):
        self.then, self.named = then, named

    def train(self, command, on_event, *, should_stop, time_limit_seconds):
        self.command, resumed = command, command.resume_from
        self.resumed = Path(resumed).read_bytes() if resumed else None
        path = self.named or Path(command.output_dir) / "lora_weights.safetensors"
        path.write_bytes(b"weights")
        self.then()
        return FinishedEvent(
            files=[
                OutputFile(
                    name=path.name,
                    path=str(path),
                    bytes=7,
                    sha256=hashlib.sha256(b"weights").hexdigest(),
                )
            ],
            steps=1,
            epochs=1,
            loss=0.5,
            metadata={},
        )


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store", buckets=["bucket"])


@pytest.fixture
def stages(store):
    fetcher = ImageFetcher(
        ImageSources(
            s3=store,
            gs_as_s3=False,
            buckets=BucketList((), own_bucket="results"),
            https_hosts=(),
            allow_files=True,
            max_bytes=10_000,
        ),
        parallelism=2,
        deadline_seconds=10,
    )
    return StageRunner(store=store, fetcher=fetcher, allow_hub=False, time_limit_seconds=60)


def claimed(store, tmp_path, should_stop=lambda: None, images=("a.jpg",)):
    urls = []
    for name in images:
        (tmp_path / name).write_bytes(b"a picture")
        urls.append((tmp_path / name).as_uri())
    body = (
        b'{"job_id": "j", "style_id": 1, "image_urls": %s}' % str(urls).replace("'", '"').encode()
    )
    return Claimed(
        job=parse_message(body).job,
        epoch=1,
        record=JobRecord(store, "bucket", "j"),
        folder=tmp_path / "work",
        base_model=BaseModelEntry(name="tiny", location="x"),
        on_event=lambda event: None,
        should_stop=should_stop,
        checkpoint=None,
    )


def run(stages, job, slot):
    """All stages, as an attempt runs them."""
    ended = stages.train(job, slot)
    if isinstance(ended, FinishedEvent):
        stages.store_files(job, ended)
    return ended


def outputs(store, job):
    return [url.key for url in store.list(job.record.keys.output_prefix(1))]


@pytest.mark.parametrize(("family", "side"), [("sd1", 512), ("sd2", 768), ("sdxl", 1024)])
def test_a_job_without_a_resolution_is_trained_at_that_of_its_base_model(
    stages, store, tmp_path, family, side
):
    base = BaseModelEntry(name="tiny", location="x", family=family)
    slot = FinishingSlot()
    stages.train(replace(claimed(store, tmp_path), base_model=base), slot)
    assert slot.command.parameters.resolution == side
    assert slot.command.base_model.family == family


def test_pictures_of_the_class_are_fetched_beside_the_others_and_handed_over_apart(
    stages, store, tmp_path
):
    plain = claimed(store, tmp_path, images=("a.jpg", "b.jpg"))
    for name in ("c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"of the class")
    (tmp_path / "a.txt").write_text("what is beside it")
    (tmp_path / "c.txt").write_text("what is beside it")
    job = plain.job.model_dump() | {
        "class_images": [
            {"url": (tmp_path / "c.jpg").as_uri()},
            {"url": (tmp_path / "d.jpg").as_uri(), "caption": "a house"},
        ],
        "parameters": {"with_prior_preservation": True, "class_prompt": "a building"},
    }
    both = replace(plain, job=TrainingJob.model_validate(job))
    slot = FinishingSlot()
    stages.train(both, slot)
    images, of_class = slot.command.images, slot.command.class_images
    assert [image.caption for image in images] == ["what is beside it", ""]
    assert [image.caption for image in of_class] == ["a building", "a house"]
    assert [image.index for image in (*images, *of_class)] == [0, 1, 2, 3]
    assert Path(of_class[0].path).read_bytes() == b"of the class"


def test_a_trained_adapter_is_stored_even_while_the_worker_drains(stages, store, tmp_path):
    told = Told("drain")
    job = claimed(store, tmp_path, told)
    assert isinstance(run(stages, job, FinishingSlot(told.now.set)), FinishedEvent)
    assert outputs(store, job) == ["jobs/j/output/000001/lora_weights.safetensors"]


def test_a_canceled_job_uploads_nothing(stages, store, tmp_path):
    told = Told("cancel")
    job = claimed(store, tmp_path, told)
    with pytest.raises(Interrupted):
        run(stages, job, FinishingSlot(told.now.set))
    assert outputs(store, job) == []


def test_a_draining_worker_begins_nothing(stages, store, tmp_path):
    told = Told("drain")
    told.now.set()
    with pytest.raises(Interrupted):
        run(stages, claimed(store, tmp_path, told), FinishingSlot())


def test_a_file_that_changes_on_the_way_is_not_stored_as_good(stages, store, tmp_path, mocker):
    job = claimed(store, tmp_path)
    written = job.folder / "outputs" / "lora_weights.safetensors"
    slot = FinishingSlot(lambda: written.write_bytes(b"changed"))
    with pytest.raises(JobError) as caught:
        run(stages, job, slot)
    assert caught.value.code is ErrorCode.UPLOAD_FAILED
    assert caught.value.transient


def test_a_file_outside_of_the_jobs_folder_is_never_stored(stages, store, tmp_path):
    job = claimed(store, tmp_path)
    with pytest.raises(JobError, match="outside of the job's folder"):
        run(stages, job, FinishingSlot(named=tmp_path / "credentials"))
    assert outputs(store, job) == []


def test_each_picture_comes_with_its_caption_and_where_that_is_from(stages, store, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(b"a picture")
    (tmp_path / "b.txt").write_text("[trigger] from a file")
    (tmp_path / "a.txt").write_text("not looked at")
    urls = [(tmp_path / f"{name}.jpg").as_uri() for name in ("a", "b", "c")]
    message = {
        "job_id": "j",
        "style_id": 1,
        "image_urls": [{"url": urls[0], "caption": "sent with [trigger]"}, *urls[1:]],
        "trigger_word": "zkw",
        "tags": ["ink"],
    }
    job = replace(claimed(store, tmp_path), job=parse_message(json.dumps(message).encode()).job)
    slot = FinishingSlot()
    stages.train(job, slot)
    assert [(image.caption, image.caption_source) for image in slot.command.images] == [
        ("sent with zkw", "message"),
        ("zkw from a file", "file"),
        ("zkw, ink", "template"),
    ]


def test_the_template_is_filled_once_a_job_and_all_pictures_share_its_words(
    stages, store, tmp_path, mocker
):
    plain = claimed(store, tmp_path, images=("a.jpg", "b.jpg", "c.jpg"))
    job = replace(plain, job=plain.job.model_copy(update={"tags": ("ink", "night")}))
    filled = mocker.spy(TrainingJob, "template_caption")
    slot = FinishingSlot()
    stages.train(job, slot)
    assert [image.caption for image in slot.command.images] == ["ink, night"] * 3
    assert filled.call_count == 1


def test_a_full_disk_is_said_with_its_numbers(stages, store, tmp_path, mocker):
    mocker.patch("worker.jobs.stages.shutil.disk_usage", return_value=mocker.Mock(free=2**20))
    with pytest.raises(JobError, match="1 MiB free and needs 512") as caught:
        run(stages, claimed(store, tmp_path), FinishingSlot())
    assert caught.value.transient


def stored_checkpoint(store, job, epoch, step):
    """A checkpoint with its pointer, as the claim number `epoch` leaves it."""
    body = f"step {step}".encode()
    url = job.record.keys.checkpoint_file(epoch, step)
    store.write(url, body, content_type="application/octet-stream")
    digest = hashlib.sha256(body).hexdigest()
    return CheckpointPointer(step=step, epoch=epoch, url=str(url), sha256=digest)


def test_a_checkpoint_that_a_slow_owner_replaced_meanwhile_is_looked_up_again(
    stages, store, tmp_path
):
    job = claimed(store, tmp_path)
    gone = stored_checkpoint(store, job, 1, 2)
    job.checkpoint = (gone, job.record.point_to(gone, None))
    newer = stored_checkpoint(store, job, 1, 4)
    job.record.point_to(newer, job.checkpoint[1])
    store.delete(ObjectUrl.parse(gone.url))
    slot = FinishingSlot()
    run(stages, job, slot)
    assert slot.resumed == b"step 4"


def test_a_checkpoint_that_is_nowhere_costs_the_steps_and_not_the_job(stages, store, tmp_path):
    job = claimed(store, tmp_path)
    gone = stored_checkpoint(store, job, 1, 2)
    job.checkpoint = (gone, job.record.point_to(gone, None))
    store.delete(ObjectUrl.parse(gone.url))
    slot = FinishingSlot()
    run(stages, job, slot)
    assert slot.resumed is None


def test_pictures_that_were_fetched_ahead_are_not_fetched_again(stages, store, tmp_path, mocker):
    job = claimed(store, tmp_path)
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    job.fetched = stages.fetch_ahead(job.job, ahead, lambda: False)
    fetch = mocker.spy(stages.fetcher, "fetch")
    assert isinstance(run(stages, job, FinishingSlot()), FinishedEvent)
    assert fetch.call_count == 0


def test_a_picture_that_cannot_be_fetched_ahead_is_judged_when_the_job_is_ours(
    stages, store, tmp_path
):
    job = claimed(store, tmp_path, images=("a.jpg", "b.jpg"))
    (tmp_path / "b.jpg").unlink()
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    job.fetched = stages.fetch_ahead(job.job, ahead, lambda: False)
    assert job.fetched is None
    with pytest.raises(JobError, match=r"b\.jpg"):
        run(stages, job, FinishingSlot())
