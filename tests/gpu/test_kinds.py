"""Other kinds of adapters and optimizers on a real GPU: trained, resumed, exported, loaded back."""

import pytest

from tests.unit.training.builders import command, digests, last_checkpoint
from worker.contract.pipe import FinishedEvent, StageEvent
from worker.training.base_model import BaseModelShelf
from worker.training.job import run_job

KINDS = [
    {"target_modules": "attn-mlp"},
    {"use_dora": True},
    {"train_text_encoder": True, "text_encoder_learning_rate": 1e-4},
    {"optimizer": "adafactor"},
    {"optimizer": "prodigy", "learning_rate": 1.0},
    {"optimizer": "adamw8bit"},
]
PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}


@pytest.mark.parametrize("rules", KINDS, ids=lambda rules: "-".join(map(str, rules.values())))
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_job_of_this_kind_ends_with_both_files_and_a_resume_ends_bit_identical(
    tiny_base_model, pictures, tmp_path, gpu, rules, precision
):
    if package := PACKAGES.get(rules.get("optimizer", "")):
        pytest.importorskip(package)
    rules = {"mixed_precision": precision, "max_train_steps": 120, "learning_rate": 1e-3} | rules
    shelf = BaseModelShelf()

    def job(name, stop_after=None, **more):
        events, asked = [], [0]

        def should_stop():
            asked[0] += any(isinstance(e, StageEvent) and e.stage == "training" for e in events)
            return "drain" if stop_after is not None and asked[0] > stop_after else None

        order = command(tiny_base_model, pictures, tmp_path / name, **rules, **more)
        return run_job(order, shelf, gpu, report=events.append, should_stop=should_stop), events

    whole, _ = job("whole")
    assert isinstance(whole, FinishedEvent)
    assert len(digests(whole)) == 2
    _, events = job("stopped", stop_after=60)
    again, _ = job("on", resume_from=last_checkpoint(events))
    assert again.metadata["resumed_at_step"] == 60
    assert digests(again) == digests(whole)
