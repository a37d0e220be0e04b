"""Whole jobs side by side: files, reports and checkpoints are those of jobs by themselves."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.unit.training.builders import command, digests, last_checkpoint, run
from tests.unit.training.together import run_together
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import FinishedEvent, LogEvent, StageEvent, StoppedEvent
from worker.training import job

TOLERANCE = 5e-5


@pytest.fixture
def orders(tiny_base_model, pictures, tmp_path):
    """Makes two jobs, in folders of a name, that go on from checkpoints if some are given."""

    def make(folder, resume_from=(None, None), **rules):
        return [
            command(
                tiny_base_model,
                pictures[place : place + 3],
                tmp_path / folder / name,
                job_id=name,
                seed=place,
                resume_from=resume_from[place],
                **{"learning_rate": 1e-3, **rules, **own},
            )
            for place, (name, own) in enumerate(
                {
                    "a": {"rank": 4, "max_train_steps": 4, "validation_split": 0.3},
                    "b": {"rank": 16, "max_train_steps": 6, "lr_scheduler": "cosine"},
                }.items()
            )
        ]

    return make


def adapter(ended: FinishedEvent) -> dict[str, torch.Tensor]:
    [path] = [file.path for file in ended.files if file.name == "lora_weights.safetensors"]
    return safetensors.torch.load_file(path)


def difference(one: FinishedEvent, other: FinishedEvent) -> float:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def test_jobs_side_by_side_give_what_each_gives_alone_and_say_how_they_ran(orders):
    separate = [
        run(order)[0]
        for order in orders("alone", validation_prompts=["a shape"], num_validation_images=1)
    ]
    ended, events = run_together(
        orders("packed", validation_prompts=["a shape"], num_validation_images=1)
    )
    for one, other, said in zip(ended, separate, events, strict=True):
        assert isinstance(one, FinishedEvent)
        assert [file.name for file in one.files] == [file.name for file in other.files]
        assert difference(one, other) < TOLERANCE
        assert one.metadata["packing"]["slots"] == 2
        assert "packing" not in other.metadata
        assert [e.stage for e in said if isinstance(e, StageEvent) and e.status == "ended"] == [
            *("caching", "training", "exporting"),
        ]
        before = one.metadata["evaluation_loss_before"]
        assert before == pytest.approx(other.metadata["evaluation_loss_before"], rel=1e-5)
        [manifest] = [Path(file.path) for file in one.files if file.name == "manifest.json"]
        assert json.loads(manifest.read_text())["metadata"]["packing"] == one.metadata["packing"]
        # Drawn with the adapter silent, on a UNet that only this job uses.
        pictures = [
            [f.sha256 for f in event.files if "/before_" in f.name] for event in (one, other)
        ]
        assert pictures[0] == pictures[1] != []
    assert ended[0].metadata["packing"]["mean_company"] == 2
    assert ended[1].metadata["packing"]["mean_company"] == pytest.approx(10 / 6, abs=0.01)


def test_drained_together_and_gone_on_with_together_is_bit_for_bit_as_never_stopped(orders):
    whole, _ = run_together(orders("whole"))
    stopped, events = run_together(orders("stopped"), drained=True)
    assert [(type(one), one.reason, one.step) for one in stopped] == 2 * [
        (StoppedEvent, "drain", 1),
    ]
    paths = [last_checkpoint(said) for said in events]
    again, _ = run_together(orders("again", paths))
    for one, other in zip(again, whole, strict=True):
        assert digests(one) == digests(other)
        assert one.metadata["resumed_exactly"] is True
        assert one.metadata["resumed_at_step"] == 1


def test_going_on_in_other_company_is_the_same_but_for_rounding_and_is_said(orders):
    whole, _ = run_together(orders("whole"))
    _, events = run_together(orders("stopped"), drained=True)
    paths = [last_checkpoint(said) for said in events]
    alone = [run(order)[0] for order in orders("alone", paths)]
    swapped, said = run_together(orders("swapped", paths)[::-1])
    for one, other in zip([*alone, *swapped[::-1]], whole * 2, strict=True):
        assert difference(one, other) < TOLERANCE
        assert one.metadata["resumed_exactly"] is False
    because = [one.metadata["resumed_inexactly_because"] for one in (alone[0], swapped[1])]
    assert because[0].startswith("company in a pass: none here, 1 of 2 beside ")
    assert because[1].startswith("company in a pass: 2 of 2 beside ")
    told = [e for e in said[0] if isinstance(e, LogEvent) and e.event == "company_is_another"]
    assert len(told) == 1


def test_a_checkpoint_of_a_job_alone_is_gone_on_with_in_company(orders):
    order, neighbour = orders("alone")
    whole, _ = run(order)
    stopped, events = run(order, stop_after=1)
    assert isinstance(stopped, StoppedEvent)
    [moved, _] = orders("packed", (last_checkpoint(events), None))
    ended, _ = run_together([neighbour, moved])
    assert difference(ended[1], whole) < TOLERANCE
    assert ended[1].metadata["resumed_exactly"] is False


def test_a_job_that_fails_before_its_first_step_is_nothing_to_another(orders, tmp_path):
    good, bad = orders("packed")
    expected, _ = run(orders("alone")[0])
    bad = bad.model_copy(
        update={"images": [image.model_copy(update={"path": "/nowhere"}) for image in bad.images]}
    )
    # It never takes its seat, so nobody waits for it.
    ended, _ = run_together([good, bad], all_seated=False)
    assert isinstance(ended[1], JobError)
    assert ended[1].code is ErrorCode.INVALID_IMAGE
    assert difference(ended[0], expected) == 0
    assert ended[0].metadata["packing"]["mean_company"] == 1


def test_a_job_for_whose_pictures_its_neighbours_leave_no_memory_is_tried_again(orders, mocker):
    one, other = orders("packed")
    gather = job.gather

    def no_room(order, *args, **kwargs):
        if order.job_id != other.job_id:
            return gather(order, *args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory")

    mocker.patch.object(job, "gather", no_room)
    (neighbour, refused), _ = run_together([one, other], all_seated=False)
    assert isinstance(neighbour, FinishedEvent)
    assert (refused.code, refused.transient) == (ErrorCode.GPU_OUT_OF_MEMORY, True)


def test_alone_in_its_trainer_a_job_that_needs_too_much_memory_has_failed(orders, mocker):
    mocker.patch.object(job, "gather", side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    [order, _] = orders("packed")
    [refused], _ = run_together([order.model_copy(update={"alone": True})], all_seated=False)
    assert (refused.code, refused.transient) == (ErrorCode.GPU_OUT_OF_MEMORY, False)


def test_jobs_of_stable_diffusion_3_train_one_after_another_in_a_trainer_with_several_slots(
    tiny_families, pictures, tmp_path
):
    orders = [
        command(
            tiny_families["sd3"],
            pictures[:3],
            tmp_path / name,
            job_id=name,
            family="sd3",
            max_train_steps=2,
        )
        for name in "ab"
    ]
    # Neither takes its seat before the other has left.
    ended, _ = run_together(orders, all_seated=False)
    assert [type(one) for one in ended] == [FinishedEvent, FinishedEvent]
    assert digests(ended[0]) == digests(run(orders[0])[0])
