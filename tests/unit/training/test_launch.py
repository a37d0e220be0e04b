"""What is tried before the first step, and what the passes leave behind after the last."""

import dataclasses

from tests.unit.training.builders import build, command, run
from worker.contract.pipe import FinishedEvent
from worker.training import launch, resumable
from worker.training.step import optimizer_step


def test_a_recording_s_memory_is_free_before_the_adapter_is_looked_at_and_exported(
    tiny_base_model, pictures, tmp_path, mocker
):
    train, look, kept = resumable.train, resumable.fixed_loss, []

    def recorded(trainee, *args, **kwargs):
        ended = train(trainee, *args, **kwargs)
        trainee.recorded = object()
        kept.append((trainee.recorded is not None, graph_is_kept(trainee)))
        return ended

    def looked_at(trainee, lesson):
        kept.append((trainee.recorded is not None, graph_is_kept(trainee)))
        return look(trainee, lesson)

    mocker.patch.object(resumable, "train", recorded)
    mocker.patch.object(resumable, "fixed_loss", looked_at)
    ended, _ = run(command(tiny_base_model, pictures[:2], tmp_path, max_train_steps=2))
    assert isinstance(ended, FinishedEvent)
    assert kept == [(True, True), (False, False)]


def test_what_an_eager_pass_left_is_let_go_of_before_one_is_recorded(
    tiny_base_model, pictures, tmp_path, mocker
):
    """Else the recording would lead back to the stream of that pass, and cannot be had."""
    rules = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    _, trainee, lesson = build(command(tiny_base_model, pictures[:4], tmp_path, **rules))
    lesson.plan = dataclasses.replace(lesson.plan, recorded=True)
    recordings = []

    class Recorded:
        def __init__(self, run, batch, buffer, share):
            recordings.append((graph_is_kept(trainee), share))
            self.run = run

        def fits(self, batch):
            return True

        def __call__(self, batch, share):
            return self.run(batch, share)

    mocker.patch.object(launch, "RecordedPass", Recorded)
    trainee.losses[0] = optimizer_step(trainee, lesson)
    assert graph_is_kept(trainee)
    launch.prepare_launch(trainee, lesson, lambda event: None)
    assert trainee.recorded is not None
    # A sample counts in the trial as in a step: fp16 would overflow with more.
    assert recordings == [(False, 1 / 4)]


def graph_is_kept(trainee):
    """Whether matrices of the last pass still hold its graph."""
    return "a" in vars(trainee.adapter.groups[0])
