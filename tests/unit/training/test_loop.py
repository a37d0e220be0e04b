"""What the loop says while it trains, and when it gives up."""

import pytest
import torch

from tests.unit.training.builders import CPU, build, command, run
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import StepEvent
from worker.training import loop
from worker.training import step as step_module
from worker.training.loop import train


def go_on():
    return None


def test_the_estimate_counts_down_to_0_on_the_last_step(
    tiny_base_model, pictures, tmp_path, mocker
):
    mocker.patch.object(loop, "REPORT_SECONDS", 0)
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path))
    said: list[StepEvent] = []
    train(trainee, lesson, report=said.append, should_stop=go_on, checkpoint=go_on)
    assert [event.step for event in said] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in said] == [1, 1, 2, 2, 3, 3]
    assert said[-1].estimated_seconds == 0
    for event in said:
        assert event.estimated_seconds == pytest.approx(event.step_seconds * (6 - event.step))
    assert [event.loss for event in said] == pytest.approx(trainee.losses.tolist())


def test_the_loss_is_read_at_reports_alone(tiny_base_model, pictures, tmp_path, mocker):
    """A loss that is read waits for the device, so one report an hour reads it once."""
    mocker.patch.object(loop, "REPORT_SECONDS", 3600)
    reads = mocker.spy(loop, "check_finite")
    _, trainee, lesson = build(command(tiny_base_model, pictures[:2], tmp_path))
    said: list[StepEvent] = []
    train(trainee, lesson, report=said.append, should_stop=go_on, checkpoint=go_on)
    assert reads.call_count == len(said) == 1
    assert said[0].loss == pytest.approx(float(trainee.losses.mean()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_ends_the_job_and_names_the_step(
    tiny_base_model, pictures, tmp_path, mocker, bad
):
    real = step_module.sample_losses
    calls = [0]

    def diverges(*arguments):
        calls[0] += 1
        losses = real(*arguments)
        return losses * bad if calls[0] == 4 else losses

    mocker.patch.object(step_module, "sample_losses", diverges)
    with pytest.raises(JobError, match="not a finite number at step 4") as caught:
        run(command(tiny_base_model, pictures, tmp_path))
    assert caught.value.code is ErrorCode.NON_FINITE_LOSS
    assert "learning_rate" in caught.value.message


def test_a_canceled_job_leaves_no_checkpoint(tiny_base_model, pictures, tmp_path):
    _, trainee, lesson = build(command(tiny_base_model, pictures, tmp_path))
    saved: list[int] = []
    answers = iter([None, None, "cancel"])
    reason = train(
        trainee,
        lesson,
        report=lambda event: None,
        should_stop=lambda: next(answers),
        checkpoint=lambda: saved.append(trainee.step),
    )
    assert (reason, trainee.step, saved) == ("cancel", 2, [])


def test_the_tables_of_the_noise_schedule_lie_on_the_device_of_the_job(
    tiny_base_model, pictures, tmp_path
):
    """diffusers' lie on the CPU and are moved at every step."""
    model, _, _ = build(command(tiny_base_model, pictures[:1], tmp_path))
    meta = type(model.schedule)(model.schedule.snr, torch.device("meta"))
    assert {t.device.type for t in (meta.signal, meta.sigma, meta.snr)} == {"meta"}
    assert model.schedule.signal.device == CPU
