"""Previews along the way: at planned steps, without a trace in the training, kept by a resume."""

from pathlib import Path

import pytest
import torch

from tests.unit.training.builders import build, command, digests, last_checkpoint, run
from worker.contract.manifest import Manifest
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import FinishedEvent, StepEvent
from worker.training import along_the_way, loop
from worker.training.along_the_way import PICTURE_COST, AlongTheWay, points_along
from worker.training.drawing import Brush
from worker.training.export import DIFFUSERS_FILE
from worker.training.loop import train
from worker.training.plan import make_plan
from worker.training.previews import Wanted

SEEN = {"validation_prompts": ["a circle", "a square"], "num_validation_images": 2}

#: Steps of the sampler in these tests.
STEPS = 4


@pytest.fixture(autouse=True)
def _few_steps_of_the_sampler(mocker):
    mocker.patch("worker.training.drawing.STEPS", STEPS)


RULES = {**SEEN, "preview_points": 2, "learning_rate": 1e-2}


def plan_of(steps, **rules):
    parameters = TrainingParameters(max_train_steps=steps, **rules)
    from worker.training.families.known import FAMILIES

    return parameters, make_plan(parameters, 4, memory=FAMILIES["sd1"].memory, free_bytes=0)


@pytest.mark.parametrize(
    ("steps", "asked", "prompts", "cheap", "points"),
    [
        (100, 3, 1, True, (25, 50, 75)),
        (100, 3, 1, False, (25, 50, 75)),
        (100, 1, 5, True, (50,)),
        (3, 8, 1, True, (1, 2)),  # not twice at one step, and not at the end
        (1, 8, 1, True, ()),
        (100, 0, 1, True, ()),
        (100, 3, 0, True, ()),
        (100, None, 1, True, ()),  # a picture would be a sixth of the training
        (2000, None, 1, True, (500, 1000, 1500)),
        (2000, None, 3, True, (1000,)),
        (2000, None, 1, False, ()),
    ],
)
def test_points_lie_evenly_and_take_little_unless_they_are_asked_for(
    steps, asked, prompts, cheap, points
):
    rules, plan = plan_of(steps, preview_points=asked)
    wanted = Wanted(tuple("abcde"[:prompts]), (0,))
    found = points_along(rules, plan, wanted, cheap=cheap)
    assert found == points
    if asked is None:
        assert len(found) * prompts * PICTURE_COST <= steps / 20


def test_of_many_prompts_and_seeds_the_first_seed_of_four_is_drawn():
    wanted = Wanted(tuple("abcde"), (0, 1, 2))
    assert wanted.along == [(0, "a", 0), (3, "b", 0), (6, "c", 0), (9, "d", 0)]
    assert wanted.pairs[6] == ("c", 0)


def test_asking_for_points_asks_for_previews():
    from worker.training.previews import previews_wanted

    rules = TrainingParameters(preview_points=1)
    assert previews_wanted(rules, ["a cat"], None, cheap=False).prompts == ("a cat",)


def job(model, pictures, folder, **more):
    return command(model, pictures[:3], folder, **{**RULES, **more})


def manifest_in(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "out" / "manifest.json").read_bytes())


def along_in(folder: Path) -> dict[str, bytes]:
    files = [picture.file for preview in manifest_in(folder).previews for picture in preview.along]
    return {name: (folder / "out" / name).read_bytes() for name in files}


def test_a_picture_along_the_way_is_what_a_job_that_ends_there_shows_after(
    tiny_base_model, pictures, tmp_path
):
    ended, _ = run(job(tiny_base_model, pictures, tmp_path / "long"))
    assert isinstance(ended, FinishedEvent)
    seen = manifest_in(tmp_path / "long").previews
    assert [[at.step for at in preview.along] for preview in seen] == [[2, 4], [], [2, 4], []]
    for steps in (2, 4):
        folder = tmp_path / str(steps)
        run(job(tiny_base_model, pictures, folder, max_train_steps=steps, preview_points=0))
        for number in (0, 2):
            then = tmp_path / "long" / "out" / f"previews/step_{steps:06d}_{number:02d}.png"
            after = folder / "out" / f"previews/after_{number:02d}.png"
            assert then.read_bytes() == after.read_bytes()


@pytest.mark.parametrize("more", [{}, {"train_text_encoder": True}, {"use_dora": True}])
def test_they_change_no_bit_of_the_adapter(tiny_base_model, pictures, tmp_path, more):
    found = [
        digests(
            run(
                job(
                    tiny_base_model,
                    pictures,
                    tmp_path / str(points),
                    preview_points=points,
                    num_validation_images=1,
                    **more,
                )
            )[0]
        )[DIFFUSERS_FILE]
        for points in (0, 3)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("stop_after", [1, 2, 9, 14, 17])
def test_a_resumed_job_shows_the_same_pictures_as_one_that_ran_through(
    tiny_base_model, pictures, tmp_path, stop_after
):
    """Stopped before the first point, at it, while it draws, between the points, and after both."""
    whole, _ = run(job(tiny_base_model, pictures, tmp_path / "whole"))
    _, events = run(job(tiny_base_model, pictures, tmp_path / "stopped"), stop_after=stop_after)
    again, _ = run(
        job(
            tiny_base_model,
            pictures,
            tmp_path / "again",
            resume_from=last_checkpoint(events),
        )
    )
    assert again.metadata["resumed_exactly"]
    assert digests(again) == digests(whole)
    assert along_in(tmp_path / "again") == along_in(tmp_path / "whole")
    assert len(along_in(tmp_path / "again")) == 4


def interlude(tiny_base_model, pictures, folder, *, should_stop=lambda: None, points=(3,)):
    order = command(tiny_base_model, pictures[:2], folder)
    model, trainee, lesson = build(order)
    brush = Brush(model, lesson.prediction_type, 64)
    along = AlongTheWay(
        trainee,
        lesson,
        brush,
        Wanted(("a circle", "a square"), (0,)),
        points=points,
        should_stop=should_stop,
    )
    return trainee, lesson, along


def test_who_wants_to_stop_is_heard_while_they_are_drawn_and_they_stay_due(
    tiny_base_model, pictures, tmp_path
):
    asked = []

    def stop_at_the_eighth():
        asked.append(1)
        return "drain" if len(asked) == 8 else None

    trainee, _, along = interlude(
        tiny_base_model, pictures, tmp_path, should_stop=stop_at_the_eighth
    )
    trainee.step = 3
    assert along.due
    along.draw(lambda: None)
    assert len(asked) == 8
    assert along.due
    assert trainee.along == {}
    along.draw(lambda: None)
    assert not along.due
    assert set(trainee.along[3]) == {0, 1}


def test_too_little_memory_costs_the_pictures_and_not_the_training(
    tiny_base_model, pictures, tmp_path, mocker
):
    mocker.patch.object(along_the_way, "draw", side_effect=torch.OutOfMemoryError("no"))
    ended, _ = run(job(tiny_base_model, pictures, tmp_path))
    assert isinstance(ended, FinishedEvent)
    manifest = manifest_in(tmp_path)
    assert len(manifest.previews) == 4
    assert not any(preview.along for preview in manifest.previews)
    assert "along the way" in manifest.previews_left_out


def test_their_time_is_in_the_estimate_and_in_no_step_s(
    tiny_base_model, pictures, tmp_path, mocker
):
    mocker.patch.object(loop, "REPORT_SECONDS", 0)
    trainee, lesson, along = interlude(tiny_base_model, pictures, tmp_path, points=(2, 4))
    said: list[StepEvent] = []
    train(
        trainee,
        lesson,
        report=said.append,
        should_stop=lambda: None,
        checkpoint=lambda: None,
        interlude=along,
    )
    # Before it has drawn, a picture counts as what its passes cost.
    cost = PICTURE_COST / lesson.plan.group_size * said[0].step_seconds
    assert said[0].estimated_seconds == pytest.approx(5 * said[0].step_seconds + 2 * 2 * cost)
    # While it draws it says that it is still there, so that nobody takes it for stuck.
    drawing = [event for event in said if event.step == 2][1:]
    assert len(drawing) == 2 * (STEPS + 1)
    assert along.seconds > 0
    assert max(event.step_seconds for event in said) < along.seconds
    # With one point behind it, the other is expected to take as long.
    third = next(event for event in said if event.step == 3)
    assert third.estimated_seconds > 3 * third.step_seconds + along.seconds / 4
    assert said[-1].estimated_seconds == 0
