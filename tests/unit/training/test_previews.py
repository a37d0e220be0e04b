"""Previews show the adapter and the base, from the same noise, and touch nothing."""

import numpy
import pytest
import torch
from PIL import Image

from tests.unit.training.builders import build, command, digests, last_checkpoint, run, weights_of
from worker.contract.manifest import Manifest
from worker.contract.parameters import TrainingParameters
from worker.training.drawing import Brush, pipeline_for
from worker.training.export import KOHYA_FILE
from worker.training.previews import (
    Wanted,
    draw_previews,
    is_cheap,
    previews_wanted,
    prompts_from_captions,
)
from worker.training.step import optimizer_step

TWO = Wanted(("a circle", "a square"), (0,))


def pixels(path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image, dtype=int)


def draw(trainee, lesson, model, folder, wanted=TWO, **more):
    folder.mkdir(exist_ok=True)
    rules = {"should_stop": lambda: None, "first_in_any_case": False, **more}
    return draw_previews(trainee, brush_of(model, lesson), wanted, folder=folder, **rules)


def brush_of(model, lesson):
    return Brush(model, lesson.prediction_type, lesson.parameters.resolution)


@pytest.fixture
def trained(tiny_base_model, pictures, tmp_path):
    """Model, trainee and lesson after a few large steps."""
    model, trainee, lesson = build(
        command(tiny_base_model, pictures[:2], tmp_path, max_train_steps=9, learning_rate=1e-2)
    )
    for _ in range(8):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    return model, trainee, lesson


def test_before_is_the_base_alone_and_after_is_the_adapter(trained, tiny_base_model, tmp_path):
    """Held against a pipeline that was loaded by itself and draws in one call."""
    from diffusers import StableDiffusionPipeline

    model, trainee, lesson = trained
    drawn = draw(trainee, lesson, model, tmp_path / "out")
    plain = StableDiffusionPipeline.from_pretrained(tiny_base_model)
    plain.set_progress_bar_config(disable=True)
    plain.scheduler = pipeline_for(brush_of(model, lesson)).scheduler
    for preview in drawn.previews:
        before, after = (pixels(tmp_path / "out" / n) for n in (preview.before, preview.after))
        wanted = plain(
            preview.prompt,
            height=64,
            width=64,
            num_inference_steps=25,
            generator=torch.Generator().manual_seed(preview.seed),
        ).images[0]
        assert numpy.abs(before - numpy.asarray(wanted, dtype=int)).max() <= 1
        assert numpy.abs(after - before).max() > 20


def test_drawing_touches_neither_the_training_nor_the_random_state(trained, tmp_path):
    model, trainee, lesson = trained
    trainee.unet.train()
    weights, random = weights_of(trainee), torch.get_rng_state()
    draw(trainee, lesson, model, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weight, weights[name]) for name, weight in trainee.weights.items())
    assert trainee.unet.training
    optimizer_step(trainee, lesson)


def test_equal_seeds_draw_equal_pictures_and_others_do_not(trained, tmp_path):
    model, trainee, lesson = trained
    twice = Wanted(("a circle",), (0, 1))
    draw(trainee, lesson, model, tmp_path / "a", twice)
    draw(trainee, lesson, model, tmp_path / "b", twice)
    for name in ("before_00.png", "after_00.png", "before_01.png", "after_01.png"):
        paths = [tmp_path / folder / "previews" / name for folder in ("a", "b")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    first, second = (pixels(tmp_path / "a/previews" / f"after_0{i}.png") for i in (0, 1))
    assert numpy.abs(first - second).max() > 20


@pytest.mark.parametrize("first_in_any_case", [False, True])
def test_who_wants_to_stop_is_heard_between_the_steps_of_a_picture(
    trained, tmp_path, first_in_any_case
):
    model, trainee, lesson = trained
    asked = []

    def stop_at_the_thirtieth():
        asked.append(1)
        return "drain" if len(asked) >= 30 else None

    drawn = draw(
        trainee,
        lesson,
        model,
        tmp_path / "out",
        should_stop=stop_at_the_thirtieth,
        first_in_any_case=first_in_any_case,
    )
    assert len(asked) == 30
    assert len(drawn.previews) == (1 if first_in_any_case else 0)
    assert drawn.first == "previews/after_00.png"
    assert "stop" in drawn.left_out


def test_too_little_memory_costs_the_previews_and_not_the_adapter(trained, tmp_path, mocker):
    model, trainee, lesson = trained
    mocker.patch("worker.training.previews.draw", side_effect=torch.OutOfMemoryError("no"))
    drawn = draw(trainee, lesson, model, tmp_path / "out")
    assert drawn.previews == ()
    assert "memory" in drawn.left_out


def test_prompts_come_from_the_captions_the_most_frequent_first():
    captions = ["a cat", "a dog", "a dog", "", "a hen", "sks, a cow", "a hen", "a hen"]
    assert prompts_from_captions(captions, "sks") == ("sks, a hen", "sks, a dog", "sks, a cat")
    assert prompts_from_captions(captions, None) == ("a hen", "a dog", "a cat")
    assert prompts_from_captions(["SKS drawing"], "sks") == ("SKS drawing",)
    assert prompts_from_captions(["", ""], "sks") == ("sks",)
    assert prompts_from_captions([""], None) == ("",)


def test_previews_are_drawn_where_they_are_cheap_or_asked_for():
    named = TrainingParameters(validation_prompts=("x", "y", "x"), num_validation_images=2)
    assert previews_wanted(named, [], None, cheap=False).pairs == [
        *(("x", 0), ("x", 1), ("y", 0), ("y", 1)),
    ]
    plain = TrainingParameters()
    assert previews_wanted(plain, ["a cat"], None, cheap=True).pairs == [("a cat", 0)]
    assert "minutes" in previews_wanted(plain, ["a cat"], None, cheap=False).left_out
    none = previews_wanted(TrainingParameters(validation_prompts=()), ["a"], None, cheap=True)
    assert none.pairs == []
    assert "asked for none" in none.left_out


def test_what_is_cheap_without_a_gpu_is_small():
    assert is_cheap("cuda", 1024, 2_600_000_000)
    assert is_cheap("cpu", 128, 20_000_000)
    assert not is_cheap("cpu", 512, 20_000_000)
    assert not is_cheap("cpu", 128, 860_000_000)


def test_a_drain_after_the_last_step_drops_previews_and_changes_no_adapter(
    tiny_base_model, pictures, tmp_path
):
    """The thumbnail in the kohya file is a preview, and the file must not depend on the moment."""

    def job(name, **more):
        rules = {"max_train_steps": 4, "validation_prompts": ["a circle", "a square"]}
        return command(
            tiny_base_model, pictures[:2], tmp_path / name, num_validation_images=1, **rules, **more
        )

    whole, _ = run(job("whole"))
    # Asked before each of four steps; the fifth time is between the steps of the second picture.
    drained, _ = run(job("drained"), stop_after=4)
    _, events = run(job("stopped"), stop_after=2)
    resumed, _ = run(job("resumed", resume_from=last_checkpoint(events)))
    assert digests(drained) == digests(resumed) == digests(whole)
    assert len(whole.metadata["previews"]) == 2
    assert drained.metadata["previews"] == []

    import safetensors

    with safetensors.safe_open(tmp_path / "whole" / "out" / KOHYA_FILE, framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert said["ss_tag_frequency"] == '{"pictures": {"shape 0": 1, "shape 1": 1}}'
    assert said["ss_steps"] == "4"


def test_a_finished_job_lists_every_file_with_its_hash(tiny_base_model, pictures, tmp_path):
    import hashlib

    ended, _ = run(
        command(tiny_base_model, pictures[:2], tmp_path, validation_prompts=["a circle"])
    )
    folder = tmp_path / "out"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert {file.name for file in ended.files} == {*manifest.files, "manifest.json"}
    assert {"report.html", "README.md", "previews/grid.png", "previews/after_03.png"} <= set(
        manifest.files
    )
    for name, sha256 in manifest.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    assert [row.sha256 for row in manifest.dataset] == [row.sha256 for row in manifest.inputs]
    assert manifest.environment["device"] == "CPU"
    assert set(manifest.stage_seconds) >= {"caching", "training", "previews"}
