"""Backward passes are strict about repeating, and a job whose pass cannot be says so."""

import dataclasses

import pytest
import torch

from tests.unit.training.builders import build, command, digests, run
from tests.unit.training.together import run_together
from worker.contract.pipe import FinishedEvent, LogEvent
from worker.training import launch
from worker.training import step as step_module
from worker.training.device import compute_repeatably
from worker.training.packing import shared_pass

BECAUSE = "put_ does not have a deterministic implementation"


def modes():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


class Noting(torch.autograd.Function):
    """The identity; notes in which mode it is passed, backward too."""

    seen: list

    @staticmethod
    def forward(ctx, x):
        Noting.seen.append(("forward", *modes()))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        Noting.seen.append(("backward", *modes()))
        return gradient


class NotRepeating(torch.autograd.Function):
    """The identity; its backward pass has an operator that torch calls not deterministic."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        first = torch.tensor([0])
        return gradient.clone().put_(first, gradient.flatten()[first])


@pytest.fixture(autouse=True)
def as_in_a_job():
    """Parts of a job are tried here in the mode that a whole one sets."""
    compute_repeatably()
    yield
    compute_repeatably()


@pytest.fixture
def through(mocker):
    """Has what the denoiser says go through a function of autograd."""

    def patch(function):
        for module in (step_module, shared_pass):
            real = module.answer
            mocker.patch.object(
                module, "answer", lambda *args, real=real: function.apply(real(*args))
            )

    return patch


@pytest.fixture
def job(tiny_base_model, pictures, tmp_path):
    def make(name, **more):
        rules = {"max_train_steps": 3, "lora_dropout": 0.2, "learning_rate": 1e-3}
        return command(tiny_base_model, pictures[:3], tmp_path / name, job_id=name, **rules, **more)

    return make


def given_up(events):
    return [
        event.fields["reason"]
        for event in events
        if isinstance(event, LogEvent) and event.event == "gradients_do_not_repeat"
    ]


def test_a_backward_pass_is_strict_and_nothing_else_of_a_job_can_fail_for_it(job, through):
    Noting.seen = []
    through(Noting)
    ended, events = run(job("a", gradient_accumulation_steps=2))
    assert isinstance(ended, FinishedEvent)
    assert given_up(events) == []
    assert Noting.seen.count(("backward", True, False)) == 5  # 2 + 1 + 2
    assert set(Noting.seen) == {("forward", True, True), ("backward", True, False)}
    assert modes() == (True, True)


def test_attention_of_cudnn_which_does_not_repeat_is_not_chosen(job):
    run(job("a"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_where_torch_is_not_to_be_deterministic_a_pass_leaves_it_at_that(job, through):
    Noting.seen = []
    through(Noting)
    _, trainee, lesson = build(job("a"))
    torch.use_deterministic_algorithms(mode=False)
    step_module.optimizer_step(trainee, lesson)
    assert Noting.seen == [("forward", False, False), ("backward", False, False)]


def test_a_pass_that_cannot_repeat_is_made_all_the_same_and_said_once(job, through):
    expected, _ = run(job("a"))
    through(NotRepeating)
    ended, events = run(job("a"))
    # The operator does nothing here; dropout is that of a pass that was made once.
    assert digests(ended) == digests(expected)
    assert given_up(events) == [BECAUSE]
    assert ended.metadata["resumed_exactly"] is True  # nothing was interrupted


def test_a_training_that_goes_on_says_that_its_gradients_do_not_repeat(job, through):
    through(NotRepeating)
    stopped, _ = run(job("a"), stop_after=1)
    again, events = run(job("b", resume_from=stopped.checkpoint))
    assert again.metadata["resumed_exactly"] is False
    assert again.metadata["resumed_inexactly_because"] == BECAUSE
    [found] = [
        e.fields for e in events if isinstance(e, LogEvent) and e.event == "training_resumed"
    ]
    assert found["resumed_exactly"] is False  # known from the checkpoint


def test_one_that_repeated_until_it_was_interrupted_says_so_at_its_end(job, through):
    stopped, _ = run(job("a"), stop_after=1)
    through(NotRepeating)
    again, events = run(job("b", resume_from=stopped.checkpoint))
    assert given_up(events) == [BECAUSE]
    assert again.metadata["resumed_inexactly_because"] == BECAUSE


def test_jobs_that_share_a_pass_which_cannot_repeat_share_it_all_the_same(job, through):
    expected, _ = run_together([job("a"), job("b", seed=8)])
    through(NotRepeating)
    ended, events = run_together([job("a"), job("b", seed=8)])
    for one, other, said in zip(ended, expected, events, strict=True):
        assert one.metadata["packing"]["mean_company"] == 2
        assert one.loss == other.loss
        assert given_up(said) == [BECAUSE]
        assert not [e for e in said if isinstance(e, LogEvent) and e.event == "pass_not_shared"]


def test_a_pass_that_cannot_repeat_can_be_recorded(job, through, mocker):
    recorded = mocker.patch.object(launch, "RecordedPass")
    recorded.side_effect = lambda run, batch, buffer, share: run(batch, torch.tensor(share))
    through(NotRepeating)
    _, trainee, lesson = build(job("a"))
    lesson.plan = dataclasses.replace(lesson.plan, recorded=True)
    said = []
    launch.prepare_launch(trainee, lesson, said.append)
    assert said == []
    assert trainee.recorded is not None
    assert trainee.strictness.given_up_because == BECAUSE


def test_an_error_of_another_kind_is_not_mistaken_for_it(job, mocker):
    _, trainee, lesson = build(job("a"))
    mocker.patch.object(
        trainee.accelerator, "backward", side_effect=RuntimeError("CUDA error: something")
    )
    with pytest.raises(RuntimeError, match="something"):
        step_module.optimizer_step(trainee, lesson)
    assert trainee.strictness.given_up_because == ""
