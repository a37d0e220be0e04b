"""What a GPU's free memory allows, and what is done when it was less than expected."""

import dataclasses

import pytest
import torch

from tests.unit.training.builders import build, command, largest_difference, run, weights_of
from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import LogEvent
from worker.training import launch as launch_module
from worker.training import step as step_module
from worker.training.families.known import FAMILIES
from worker.training.loop import train
from worker.training.plan import make_plan

GIB = 2**30

MEMORY = FAMILIES["sd1"].memory


def planned(gib, **rules):
    plan = make_plan(TrainingParameters(**rules), 64, memory=MEMORY, free_bytes=int(gib * GIB))
    return plan.micro_batch, plan.accumulation, plan.gradient_checkpointing


@pytest.mark.parametrize(
    ("gib", "rules", "expected"),
    [
        # a CPU: nothing is planned
        (0, {"train_batch_size": 32}, (32, 1, False)),
        # plenty, enough for half, for one, for one with checkpointing, and too little for any
        (141, {"train_batch_size": 32}, (32, 1, False)),
        (24, {"train_batch_size": 32}, (16, 2, False)),
        (2.5, {"train_batch_size": 32}, (1, 32, False)),
        (1.9, {"train_batch_size": 32}, (2, 16, True)),
        (0.5, {"train_batch_size": 32}, (1, 32, True)),
        # accumulation that was asked for stays
        (24, {"train_batch_size": 32, "gradient_accumulation_steps": 2}, (16, 4, False)),
        # checkpointing as it was asked for
        (141, {"gradient_checkpointing": True}, (1, 1, True)),
        (1.9, {"gradient_checkpointing": False}, (1, 1, False)),
        # full precision takes twice as much; larger pictures take more, no dropout less
        (3, {"mixed_precision": "no"}, (1, 1, True)),
        (3.5, {"mixed_precision": "no"}, (1, 1, False)),
        (3, {"resolution": 768}, (1, 1, True)),
        (2.2, {"lora_dropout": 0}, (1, 1, False)),
        # a high rank, feed-forward layers and DoRA take more; 8-bit moments less
        (2.5, {"rank": 256}, (1, 1, True)),
        (3.4, {"rank": 256}, (1, 1, False)),
        (2.9, {"rank": 256, "optimizer": "adamw8bit"}, (1, 1, True)),
        (3.1, {"rank": 256, "optimizer": "adamw8bit"}, (1, 1, False)),
        (2.4, {"target_modules": "attn-mlp"}, (1, 1, True)),
        (2.6, {"target_modules": "attn-mlp"}, (1, 1, False)),
        (3.7, {"use_dora": True}, (1, 1, True)),
        (3.9, {"use_dora": True}, (1, 1, False)),
    ],
)
def test_the_largest_micro_batch_that_fits_and_checkpointing_only_where_none_does(
    gib, rules, expected
):
    assert planned(gib, **rules) == expected


@pytest.mark.parametrize(
    ("family", "resolution", "gib", "expected"),
    [
        # of what is free beside an XL UNet in half precision, 5 GiB
        ("sdxl", 1024, 19, (2, 2, False)),
        ("sdxl", 1024, 10, (1, 4, False)),
        ("sdxl", 1024, 6, (4, 1, True)),
        ("sdxl", 512, 19, (4, 1, False)),
        ("sd2", 768, 14, (4, 1, False)),
        ("sd1", 768, 14, (4, 1, False)),
    ],
)
def test_each_family_has_its_own_account(family, resolution, gib, expected):
    rules = TrainingParameters(resolution=resolution, train_batch_size=4)
    plan = make_plan(rules, 64, memory=FAMILIES[family].memory, free_bytes=int(gib * GIB))
    assert (plan.micro_batch, plan.accumulation, plan.gradient_checkpointing) == expected


def test_an_uneven_micro_batch_keeps_the_pictures_of_a_step():
    rules = TrainingParameters(train_batch_size=5, num_train_epochs=1)
    plan = make_plan(rules, 10, memory=MEMORY, free_bytes=int(4.3 * GIB))
    assert (plan.micro_batch, plan.group_size, plan.accumulation) == (2, 5, 3)
    sizes = [len(batch) for batch in step_module.step_samples(plan, 1, 0)]
    assert sizes == [2, 2, 1]


def test_long_jobs_on_a_gpu_are_recorded_unless_checkpointing_or_told_otherwise():
    def recorded(free=24 * GIB, launch="auto", **rules):
        return make_plan(
            TrainingParameters(**rules), 8, memory=MEMORY, free_bytes=free, launch=launch
        ).recorded

    assert recorded(max_train_steps=100)
    assert not recorded(max_train_steps=99)
    assert recorded(max_train_steps=99, launch="graph")
    assert not recorded(max_train_steps=100, launch="eager")
    assert not recorded(max_train_steps=100, launch="compile")
    assert not recorded(max_train_steps=100, gradient_checkpointing=True)
    assert not recorded(max_train_steps=100, free=0)


def test_with_one_sample_a_recording_is_given_up_before_activations_are_recomputed():
    def ladder(**rules):
        rules = TrainingParameters(train_batch_size=2, max_train_steps=100, **rules)
        plan = make_plan(rules, 8, memory=MEMORY, free_bytes=24 * GIB)
        while plan is not None:
            yield plan.micro_batch, plan.recorded, plan.gradient_checkpointing
            plan = plan.smaller()

    rungs = [(2, True, False), (1, True, False), (1, False, False)]
    assert list(ladder()) == [*rungs, (1, False, True)]
    assert list(ladder(gradient_checkpointing=False)) == rungs


def test_where_only_a_recording_does_not_fit_steps_are_made_without(
    tiny_base_model, pictures, tmp_path, mocker
):
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path, max_train_steps=2))
    lesson.plan = dataclasses.replace(lesson.plan, recorded=True)
    full = torch.OutOfMemoryError("CUDA out of memory")
    mocker.patch.object(launch_module, "RecordedPass", side_effect=full)
    said = []
    train(trainee, lesson, report=said.append, should_stop=lambda: None, checkpoint=lambda: None)
    assert trainee.step == 2
    assert trainee.recorded is None
    [smaller] = [e.fields for e in said if isinstance(e, LogEvent)]
    assert smaller == dataclasses.asdict(lesson.plan)
    assert (smaller["recorded"], smaller["gradient_checkpointing"]) == (False, False)


def test_the_estimate_is_in_the_plan():
    rules = TrainingParameters()
    plan = make_plan(rules, 8, memory=MEMORY, free_bytes=24 * GIB)
    assert plan.estimated_bytes == MEMORY.training_bytes(rules, 1, checkpointing=False)
    assert 2.0 * GIB < plan.estimated_bytes < 2.2 * GIB
    assert plan.free_bytes == 24 * GIB


def test_out_of_memory_halves_the_micro_batch_then_recomputes_and_the_weights_come_out_the_same(
    tiny_base_model, pictures, tmp_path, mocker
):
    def order(name):
        rules = {"train_batch_size": 4, "lora_dropout": 0, "max_train_steps": 3}
        return command(tiny_base_model, pictures, tmp_path / name, adam_epsilon=1e-4, **rules)

    def trained(name):
        _, trainee, lesson = build(order(name))
        said = []
        train(
            trainee,
            lesson,
            report=said.append,
            should_stop=lambda: None,
            checkpoint=lambda: None,
        )
        return weights_of(trainee), trainee, lesson, said

    expected, *_ = trained("roomy")
    real = step_module.predict

    def full(trainee, noisy, *others):
        if len(noisy) > 1 or not trainee.unet.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(trainee, noisy, *others)

    mocker.patch.object(step_module, "predict", full)
    weights, trainee, lesson, said = trained("full")
    assert (lesson.plan.micro_batch, lesson.plan.gradient_checkpointing) == (1, True)
    smaller = [e.fields for e in said if isinstance(e, LogEvent) and "smaller" in e.event]
    assert [(f["micro_batch"], f["gradient_checkpointing"]) for f in smaller] == [
        (2, False),
        (1, False),
        (1, True),
    ]
    assert trainee.step == 3
    assert largest_difference(weights, expected) < 1e-6


def test_the_result_says_the_plan_that_was_trained_with(
    tiny_base_model, pictures, tmp_path, mocker
):
    real = step_module.predict

    def full(trainee, noisy, *others):
        if torch.is_grad_enabled() and len(noisy) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(trainee, noisy, *others)

    mocker.patch.object(step_module, "predict", full)
    ended, _ = run(command(tiny_base_model, pictures, tmp_path, train_batch_size=2))
    assert ended.metadata["train_batch_size"] == 1
    assert ended.metadata["gradient_accumulation_steps"] == 2
    assert ended.metadata["plan"]["micro_batch"] == 1


def test_where_checkpointing_was_refused_the_ladder_ends_before_it(
    tiny_base_model, pictures, tmp_path, mocker
):
    mocker.patch.object(
        step_module, "predict", side_effect=torch.OutOfMemoryError("CUDA out of memory")
    )
    order = command(tiny_base_model, pictures, tmp_path, gradient_checkpointing=False)
    with pytest.raises(JobError) as caught:
        run(order)
    assert caught.value.code is ErrorCode.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize("launch", ["recorded", "compiled"])
def test_where_steps_cannot_be_launched_faster_one_line_says_so_and_nothing_else_changes(
    tiny_base_model, pictures, tmp_path, mocker, launch
):
    """A CPU has no CUDA graphs; and a compiler may be missing anywhere."""
    mocker.patch.object(
        launch_module, "compile_blocks", side_effect=RuntimeError("no compiler\nat all")
    )

    def trained(folder, **change):
        _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path / folder))
        lesson.plan = dataclasses.replace(lesson.plan, **change)
        said = []
        train(
            trainee,
            lesson,
            report=said.append,
            should_stop=lambda: None,
            checkpoint=lambda: None,
        )
        return weights_of(trainee), [e for e in said if isinstance(e, LogEvent)]

    expected, nothing = trained("eager")
    weights, said = trained("other", **{launch: True})
    assert nothing == []
    assert [event.event for event in said] == ["steps_stay_eager"]
    assert largest_difference(weights, expected) == 0


@pytest.mark.parametrize(
    ("batch", "processes", "micro_batch"), [(4, 1, 4), (4, 2, 2), (3, 2, 2), (2, 4, 1)]
)
def test_several_processes_share_the_pictures_of_a_batch(batch, processes, micro_batch):
    rules = TrainingParameters(train_batch_size=batch)
    plan = make_plan(rules, 20, memory=MEMORY, free_bytes=0, processes=processes)
    assert (plan.micro_batch, plan.group_size) == (micro_batch, batch)
