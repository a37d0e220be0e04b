"""On pictures that are never trained on: a curve, the best adapter, a sentence, an early end."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.counted import step_work
from tests.fixtures.drawn_pictures import draw_pictures
from tests.unit.training.builders import build, command, digests, last_checkpoint, run
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import StepEvent
from worker.training import evaluate, job, resumable
from worker.training.evaluate import PASSES, fixed_loss, looked_at
from worker.training.export import KOHYA_FILE
from worker.training.families.sd1 import StableDiffusion1
from worker.training.plan import make_plan
from worker.training.sampler import held_out
from worker.training.step import Lesson
from worker.training.validation import PASS_COST, Validation, in_words, steps_between, thinned

BEST, LAST = "lora_weights.safetensors", "lora_weights_last.safetensors"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("many"), 8)


def looks(mocker, *losses):
    """Make the looks of a job find these losses, the base's last; tells when there was one."""
    found, steps = iter(losses), []

    def look(trainee, lesson):
        steps.append(trainee.step)
        return next(found)

    mocker.patch.object(resumable, "fixed_loss", look)
    mocker.patch.object(resumable, "base_loss", return_value=1.0)
    return steps


# The arithmetic of the curve


@pytest.mark.parametrize(
    ("points", "held_out", "says"),
    [
        (
            [(0, 1.0), (10, 0.8)],
            0,
            "The loss on pictures that are trained on fell from 1 to 0.8 (-20%), which says how "
            "much was learned and nothing of over-fitting",
        ),
        (
            [(0, 1.0), (10, 0.9), (20, 0.8)],
            2,
            "No sign of over-fitting: the loss on the 2 held-out pictures fell from 1 to 0.8 "
            "(-20%).",
        ),
        (
            [(0, 1.0), (10, 0.799), (20, 0.8)],
            1,
            "No sign of over-fitting: the loss on the held-out picture fell from 1 to 0.8 (-20%), "
            "lowest at step 10, whose adapter is the result.",
        ),
        (
            [(0, 1.0), (10, 0.8), (20, 0.9), (30, 1.0)],
            2,
            "Over-fitted after step 10: the loss on the 2 held-out pictures fell from 1 to 0.8 "
            "(-20%) until there and rose from 0.8 to 1 (+25%) until step 30; the adapter of step "
            "10 is the result.",
        ),
        (
            [(0, 1.0), (10, 0.8)],
            20,
            "the loss on 8 of the 20 held-out pictures fell from 1 to 0.8 (-20%).",
        ),
        ([(0, 1.0), (10, 0.8)], 8, "the loss on the 8 held-out pictures fell"),
        ([(0, 1.0), (10, 1.2)], 2, "The training did not help with the 2 held-out pictures"),
        ([(0, 1.0), (10, 0.995)], 2, "stayed at 0.995 at best"),
    ],
)
def test_the_curve_is_said_in_one_sentence(points, held_out, says):
    assert says in in_words(points, held_out=held_out, looked_at=min(held_out, PASSES) or 2)


def test_a_backend_is_told_some_of_a_long_curve_with_its_ends_and_its_best():
    curve = [(step, 1 + abs(step - 777) / 1000) for step in range(2000)]
    told = thinned(curve)
    assert len(told) <= 53
    assert [told[0]["step"], told[-1]["step"]] == [0, 1999]
    assert {"step": 777, "validation_loss": 1.0} in told
    assert thinned(curve[:3]) == [
        {"step": step, "validation_loss": loss} for step, loss in curve[:3]
    ]


def test_a_loss_that_is_no_number_is_never_the_best():
    validation = Validation()
    validation.add(1, float("nan"), None)
    assert validation.best is None
    assert not validation.exhausted(1)
    validation.add(2, 2.0, None)
    assert validation.best == (2, 2.0)


def test_patience_counts_the_looks_since_the_lowest_loss():
    validation = Validation()
    assert not validation.exhausted(1)
    for step, loss in enumerate([3.0, 2.0, 2.5, 2.0, 2.2]):
        validation.add(step, loss, None)
    assert validation.best == (1, 2.0)
    assert validation.exhausted(3)
    assert not validation.exhausted(4)
    assert not validation.exhausted(None)


@pytest.mark.parametrize(
    ("rules", "steps"),
    [
        ({}, None),
        ({"validation_steps": 7}, 7),
        ({"validation_split": 0.1, "validation_steps": 7}, 7),
        ({"validation_split": 0.1, "max_train_steps": 5000}, 500),
        ({"validation_split": 0.1, "max_train_steps": 200}, 91),
        ({"validation_split": 0.1, "max_train_steps": 200, "train_batch_size": 4}, 23),
    ],
)
def test_looks_come_at_a_tenth_of_the_job_or_as_often_as_three_percent_allow(rules, steps):
    parameters = TrainingParameters(**rules)
    plan = make_plan(parameters, 20, memory=StableDiffusion1.memory, free_bytes=0)
    assert steps_between(parameters, plan, PASSES) == steps


def test_a_pass_costs_about_what_the_interval_reckons_with():
    plain, recomputed = (step_work(checkpointing=on).gflop for on in (False, True))
    assert 0.95 * PASS_COST < (recomputed - plain) / plain < PASS_COST


# What is looked at


def lesson_with(lesson: Lesson, held_out: tuple[int, ...]) -> Lesson:
    return Lesson(
        dataset=lesson.dataset,
        schedule=lesson.schedule,
        prediction_type=lesson.prediction_type,
        parameters=lesson.parameters,
        plan=lesson.plan,
        seed=lesson.seed,
        held_out=held_out,
    )


@pytest.mark.parametrize("held_out", [(), (3,), (1, 3, 4), (0, 1, 2, 3, 4, 5)])
def test_a_look_is_eight_passes_at_eight_timesteps_however_many_pictures_there_are(
    tiny_base_model, pictures, tmp_path, mocker, held_out
):
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path))
    lesson = lesson_with(lesson, held_out)
    seen, real = [], evaluate.predict

    def noted(trainee, noisy, timesteps, *others):
        assert not torch.is_grad_enabled()
        assert not trainee.unet.training
        assert len(noisy) <= 4
        seen.extend(timesteps.tolist())
        return real(trainee, noisy, timesteps, *others)

    mocker.patch.object(evaluate, "predict", noted)
    fixed_loss(trainee, lesson)
    assert sorted(seen) == [62, 187, 312, 437, 562, 687, 812, 937]
    assert looked_at(lesson) == (held_out or (0, 1))


def test_a_look_leaves_no_trace(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path))
    trainee.unet.train()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = fixed_loss(trainee, lesson)
    assert torch.equal(torch.rand(3), expected)
    assert trainee.unet.training
    assert fixed_loss(trainee, lesson) == first


def test_looking_more_often_does_not_change_what_is_trained(tiny_base_model, many, tmp_path):
    plain, _ = run(command(tiny_base_model, many, tmp_path / "a"))
    watched, _ = run(command(tiny_base_model, many, tmp_path / "b", validation_steps=1))
    assert digests(watched) == digests(plain)
    assert [point["step"] for point in watched.metadata["validation"]["curve"]] == list(range(7))
    assert [point["step"] for point in plain.metadata["validation"]["curve"]] == [0, 6]
    for key in ("evaluation_loss_before", "evaluation_loss_after"):
        assert watched.metadata[key] == plain.metadata[key]


# Jobs that hold pictures out


def test_held_out_pictures_are_never_trained_on(tiny_base_model, many, tmp_path, mocker):
    real, shown = resumable.train, []

    def noted(trainee, lesson, **others):
        shown.append((lesson.held_out, lesson.trained))
        return real(trainee, lesson, **others)

    mocker.patch.object(resumable, "train", noted)
    ended, _ = run(command(tiny_base_model, many, tmp_path, validation_split=0.3, epochs=1))
    [(held_out, [trained])] = shown
    assert len(held_out) == 2
    assert sorted(held_out + trained) == list(range(8))
    assert ended.metadata["validation"]["held_out_images"] == 2
    assert ended.metadata["plan"]["pictures"] == 6


def test_the_best_adapter_is_the_result_and_the_last_lies_beside_it(
    tiny_base_model, many, tmp_path, mocker
):
    steps = looks(mocker, 0.9, 0.5, 0.8)
    order = command(
        tiny_base_model, many, tmp_path / "long", validation_split=0.1, validation_steps=2
    )
    ended, _ = run(order)
    assert steps == [2, 4, 6]
    said = ended.metadata["validation"]
    assert (said["best_step"], said["exported_step"], said["stopped_early"]) == (4, 4, False)
    assert ended.metadata["evaluation_loss_after"] == 0.5
    assert "the adapter of step 4 is the result" in said["says"]
    assert {BEST, LAST} < {file.name for file in ended.files}
    assert sorted(path.name for path in Path(order.output_dir).iterdir() if path.is_dir()) == [
        "previews",
        "thumbnails",
    ]

    # A job of four steps has the very weights of the best, and one of six without a look the last.
    looks(mocker, 0.5)
    shorter, _ = run(
        command(tiny_base_model, many, tmp_path / "4", validation_split=0.1, max_train_steps=4)
    )
    assert LAST not in digests(shorter)
    looks(mocker, 0.5)
    run(command(tiny_base_model, many, tmp_path / "6", validation_split=0.1))

    def weights(name, folder):
        return safetensors.torch.load_file(tmp_path / folder / "out" / name)

    for mine, other in (
        (weights(BEST, "long"), weights(BEST, "4")),
        (weights(LAST, "long"), weights(BEST, "6")),
    ):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_job_that_gets_no_better_ends_early_and_says_honest_numbers(
    tiny_base_model, many, tmp_path, mocker
):
    steps = looks(mocker, 0.9, 0.8, 0.85, 0.81)
    order = command(
        tiny_base_model,
        many,
        tmp_path,
        validation_split=0.25,
        validation_steps=5,
        early_stopping_patience=2,
        max_train_steps=600,
    )
    ended, events = run(order)
    assert steps == [5, 10, 15, 20]
    assert (ended.steps, ended.epochs) == (20, 4)
    assert ended.metadata["training_steps"] == 20
    assert ended.metadata["training_epochs"] == 4
    said = ended.metadata["validation"]
    assert (said["stopped_early"], said["planned_steps"], said["exported_step"]) == (True, 600, 10)
    final = [event for event in events if isinstance(event, StepEvent)][-1]
    assert (final.step, final.total_steps, final.epoch, final.total_epochs) == (20, 20, 4, 4)
    assert final.estimated_seconds == 0
    lines = (Path(order.output_dir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    assert [row for row in rows if "validation_loss" in row] == [
        {"step": 0, "validation_loss": 1.0},
        {"step": 5, "validation_loss": 0.9},
        {"step": 10, "validation_loss": 0.8},
        {"step": 15, "validation_loss": 0.85},
        {"step": 20, "validation_loss": 0.81},
    ]


def test_the_headers_are_of_the_weights_in_the_files(tiny_base_model, many, tmp_path, mocker):
    """Ended early at step 15 of 600, the best after 10: the second pass over six pictures."""
    seen = mocker.spy(job, "export_adapter")
    looks(mocker, 0.9, 0.8, 0.85)
    rules = {"validation_split": 0.25, "validation_steps": 5, "early_stopping_patience": 1}
    order = command(tiny_base_model, many, tmp_path, **rules, max_train_steps=600)
    run(order)
    last, best = (call.kwargs["training"] for call in seen.call_args_list)
    for facts, steps, epoch in ((last, "15", "3"), (best, "10", "2")):
        assert (facts["steps"], facts["epoch"]) == (steps, epoch)
        assert (facts["max_train_steps"], facts["num_epochs"]) == ("600", "100")
    with safetensors.safe_open(Path(order.output_dir) / KOHYA_FILE, framework="pt") as file:
        said = file.metadata()
    assert said["ss_steps"] == "10"
    assert "trained on 6 pictures for 10 steps" in said["modelspec.description"]
    left_out = held_out(order.seed, 8, 2)
    assert json.loads(said["ss_tag_frequency"]) == {
        "pictures": {f"shape {index}": 1 for index in range(8) if index not in left_out}
    }


def test_what_is_said_names_how_many_of_the_held_out_pictures_are_looked_at(
    tiny_base_model, many, tmp_path, mocker
):
    mocker.patch.object(evaluate, "PASSES", 1)
    looks(mocker, 0.5)
    ended, _ = run(command(tiny_base_model, many, tmp_path, validation_split=0.25))
    assert "the loss on 1 of the 2 held-out pictures" in ended.metadata["validation"]["says"]


def test_where_all_but_one_picture_is_bad_nothing_is_held_out_and_nothing_stops_early(
    tiny_base_model, many, tmp_path, mocker
):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    looks(mocker, 0.5, 0.6, 0.7)
    order = command(
        tiny_base_model,
        [many[0], tmp_path / "bad.png"],
        tmp_path,
        validation_split=0.5,
        validation_steps=2,
        early_stopping_patience=1,
    )
    ended, _ = run(order)
    said = ended.metadata["validation"]
    assert (ended.steps, said["held_out_images"], said["exported_step"]) == (6, 0, 6)
    assert ended.metadata["evaluation_loss_after"] == 0.7


@pytest.mark.parametrize("step", [1, 4, 7])
def test_the_best_adapter_and_the_early_end_survive_a_resume(
    tiny_base_model, many, tmp_path, mocker, step
):
    """The losses are made up by step, so that the best lies before some stops, after others."""
    real = resumable.fixed_loss
    by_step = {2: 0.9, 4: 0.5, 6: 0.7, 8: 0.6, 10: 0.4}

    def look(trainee, lesson):
        return real(trainee, lesson) * 0 + by_step[trainee.step]

    mocker.patch.object(resumable, "fixed_loss", look)
    rules = {
        "validation_split": 0.25,
        "validation_steps": 2,
        "early_stopping_patience": 2,
        "max_train_steps": 10,
    }
    whole, _ = run(command(tiny_base_model, many, tmp_path / "whole", **rules))
    assert whole.steps == 8
    assert whole.metadata["validation"]["exported_step"] == 4
    _, events = run(command(tiny_base_model, many, tmp_path / "stopped", **rules), stop_after=step)
    again, _ = run(
        command(
            tiny_base_model,
            many,
            tmp_path / "resumed",
            resume_from=last_checkpoint(events),
            **rules,
        )
    )
    assert again.metadata["resumed_at_step"] == step
    assert again.metadata["resumed_exactly"]
    assert digests(again) == digests(whole)
    assert set(digests(whole)) > {BEST, LAST}
    assert again.metadata["validation"] == whole.metadata["validation"]
    assert (again.steps, again.loss) == (whole.steps, whole.loss)
