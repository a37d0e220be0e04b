"""What is tried before the first step, and what the passes leave behind after the last."""

from tests.unit.training.builders import command, run
from worker.contract.pipe import FinishedEvent
from worker.training import resumable


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


def graph_is_kept(trainee):
    """Whether matrices of the last pass still hold its graph."""
    return "a" in vars(trainee.adapter.groups[0])
