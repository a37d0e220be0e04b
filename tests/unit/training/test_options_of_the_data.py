"""Buckets, random parts, mirror images, shuffled tags: cached once, in turn, resumable."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fixtures.drawn_pictures import draw_pictures
from tests.unit.training.builders import command, digests, last_checkpoint, run
from worker.training import cache, launch, material, recording, resumable
from worker.training import step as step_module

OPTIONS = {
    "buckets": {"aspect_ratio_buckets": True, "train_batch_size": 2},
    "buckets, accumulated": {
        "aspect_ratio_buckets": True,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "parts": {"center_crop": False, "random_flip": True},
    "tags": {"shuffle_captions": True, "keep_tokens": 1},
    "held out": {"validation_split": 0.2, "validation_steps": 1},
    "all": {
        "aspect_ratio_buckets": True,
        "train_batch_size": 2,
        "center_crop": False,
        "random_flip": True,
        "shuffle_captions": True,
        "caption_dropout_rate": 0.2,
        "validation_split": 0.2,
        "validation_steps": 2,
    },
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight pictures of three sizes."""
    return draw_pictures(tmp_path_factory.mktemp("many"), 8)


def tagged(order):
    """The job with captions of several tags."""
    images = [
        image.model_copy(update={"caption": f"zkw, shape {image.index}, ink, paper"})
        for image in order.images
    ]
    return order.model_copy(update={"images": images})


@pytest.mark.parametrize("option", OPTIONS)
def test_a_job_with_options_ends_bit_identical_after_a_resume_at_any_step(
    tiny_base_model, many, tmp_path, option
):
    def job(folder, **more):
        rules = {"max_train_steps": 5, "lora_dropout": 0.1, **OPTIONS[option], **more}
        return tagged(command(tiny_base_model, many, tmp_path / folder, **rules))

    whole, _ = run(job("whole"))
    for step in (1, 4):
        _, events = run(job(f"stopped {step}"), stop_after=step)
        checkpoint = last_checkpoint(events)
        again, _ = run(job(f"resumed {step}").model_copy(update={"resume_from": checkpoint}))
        assert again.metadata["resumed_at_step"] == step
        assert again.metadata["resumed_exactly"]
        assert digests(again) == digests(whole)
        assert again.metadata["validation"] == whole.metadata["validation"]


@pytest.mark.parametrize("option", ["buckets", "parts", "tags", "held out"])
def test_an_option_changes_what_is_learned(tiny_base_model, many, tmp_path, option):
    rules = OPTIONS[option]
    size = rules.get("train_batch_size", 1)
    plain = tagged(command(tiny_base_model, many, tmp_path / "plain", train_batch_size=size))
    other = tagged(command(tiny_base_model, many, tmp_path / "other", **rules))
    assert digests(run(plain)[0]) != digests(run(other)[0])


def datasets(mocker):
    """The data of the jobs that are run from now on."""
    found, real = [], material.encode

    def noted(*args, **kwargs):
        found.append(real(*args, **kwargs))
        return found[-1]

    mocker.patch.object(material, "encode", noted)
    return found


def test_each_picture_is_encoded_once_a_variant_and_each_text_once_however_long_the_job(
    tiny_base_model, many, tmp_path, mocker
):
    pictures = mocker.spy(cache, "_posterior")
    encoded = mocker.spy(cache, "encode_captions")
    found = datasets(mocker)
    rules = {"center_crop": False, "random_flip": True, "shuffle_captions": True, "keep_tokens": 1}
    run(tagged(command(tiny_base_model, many, tmp_path, max_train_steps=20, **rules)))
    assert pictures.call_count == 8
    # Three loose tags have six orders; and there is the empty prompt.
    [[_, _, texts]] = (call.args for call in encoded.call_args_list)
    assert len(texts) == len(set(texts)) == 8 * 6
    [data] = found
    assert len(data.embeddings) == 8 * 6 + 1
    assert data.buckets[0].mean.shape == (8, 4 * 2, 4, 8, 8)


def test_mirror_images_lie_beside_their_parts(tiny_base_model, many, tmp_path, mocker):
    found = datasets(mocker)
    wide = [path for path in many if path.name == "drawing_002.png"]
    run(command(tiny_base_model, wide, tmp_path / "a", center_crop=False, random_flip=True))
    run(command(tiny_base_model, wide, tmp_path / "b", center_crop=False))
    both, parts = (data.buckets[0].mean[0] for data in found)
    assert torch.equal(both[::2], parts)
    assert len({tuple(part.flatten().tolist()) for part in both}) == 8
    assert [found[0].variant(crop, flipped=flip) for crop in (0, 3) for flip in (False, True)] == [
        *(0, 1),
        *(6, 7),
    ]


def test_all_parts_and_orders_come_in_turn(tiny_base_model, many, tmp_path, mocker):
    batches = mocker.spy(step_module, "make_batch")
    rules = {"center_crop": False, "shuffle_captions": True, "num_train_epochs": 8}
    order = command(tiny_base_model, many[2:3], tmp_path, max_train_steps=None, **rules)
    run(tagged(order))
    draws = [one for call in batches.call_args_list for one in call.args[2]]
    assert len(draws) == 8
    assert [one.crop for one in draws[:4]] != [one.crop for one in draws[4:]]
    assert sorted(one.crop for one in draws[:4]) == sorted(one.crop for one in draws[4:])
    assert sorted(one.order for one in draws) == list(range(8))


def test_a_bucket_that_does_not_fill_a_batch_still_trains_and_the_plan_counts_it(
    tiny_base_model, many, tmp_path, mocker
):
    shapes, real = [], step_module.predict

    def noted(trainee, noisy, *others):
        shapes.append((len(noisy), *noisy.shape[-2:]))
        return real(trainee, noisy, *others)

    mocker.patch.object(step_module, "predict", noted)
    order = command(
        *(tiny_base_model, many, tmp_path),
        aspect_ratio_buckets=True,
        train_batch_size=3,
        num_train_epochs=2,
        max_train_steps=None,
    )
    found = datasets(mocker)
    ended, _ = run(order)
    sizes = {bucket.latent_shape[-2:]: len(bucket.pictures) for bucket in found[0].buckets}
    assert len(sizes) == 3
    expected = []
    for shape, count in sizes.items():
        expected += [(min(3, count - start), *shape) for start in range(0, count, 3)]
    assert sorted(shapes) == sorted(2 * expected)
    assert ended.steps == ended.metadata["plan"]["total_steps"] == 2 * len(expected)


def test_the_largest_bucket_is_what_is_recorded(tiny_base_model, many, tmp_path, mocker):
    """Other shapes do not fit a recording and are launched one kernel at a time."""
    made, used = [], []

    class Recorder(recording.RecordedPass):
        def __init__(self, run, batch, buffer, share):
            self._batch, self._run = batch, run
            made.append(batch)

        def __call__(self, batch, share):
            used.append(batch)
            return self._run(batch, share)

    mocker.patch.object(launch, "RecordedPass", Recorder)
    real = resumable.train

    def recorded(trainee, lesson, **others):
        lesson.plan = replace(lesson.plan, recorded=True)
        return real(trainee, lesson, **others)

    mocker.patch.object(resumable, "train", recorded)
    rules = {**OPTIONS["buckets"], "max_train_steps": 20}
    ended, _ = run(command(tiny_base_model, many, tmp_path / "recorded", **rules))
    mocker.stopall()
    plain, _ = run(command(tiny_base_model, many, tmp_path / "plain", **rules))
    assert digests(ended) == digests(plain)
    [batch] = made
    assert 0 < len(used) < 20
    assert {(one.shape, one.bucket, one.indices.shape) for one in used} == {
        (batch.shape, batch.bucket, batch.indices.shape)
    }


def test_the_manifest_and_the_metadata_say_what_there_is_to_say_of_the_pictures(
    tiny_base_model, many, tmp_path
):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    order = command(tiny_base_model, [*many[:2], many[0], tmp_path / "bad.png"], tmp_path / "job")
    ended, _ = run(order)
    counted = {"pictures": 4, "used": 3, "left_out": 1, "duplicate": 1}
    assert ended.metadata["dataset"] == counted
    rows = json.loads((Path(order.output_dir) / "manifest.json").read_text())["dataset"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["duplicate_of"] for row in rows] == [None, None, 0, None]
    assert rows[0]["caption_tokens"] > 2
    for row in rows[:3]:
        thumbnail = Path(order.output_dir) / "thumbnails" / row["thumbnail"]
        assert 0 < thumbnail.stat().st_size <= 20_000
