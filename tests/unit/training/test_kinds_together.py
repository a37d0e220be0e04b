"""Other kinds of adapters beside what else a job can have: families, validation, captions."""

import pytest
import torch

from tests.unit.training.builders import build, command, digests, last_checkpoint, run
from worker.training.adapter import TEXT_ENCODER
from worker.training.base_model import BaseModelShelf
from worker.training.export import DIFFUSERS_FILE
from worker.training.job import LAST_FILE
from worker.training.sampler import step_samples
from worker.training.step import batch_losses, drawn

TEXT = {"train_text_encoder": True, "rank": 4, "learning_rate": 1e-3}
DORA = {"use_dora": True, "target_modules": "attn-mlp", "rank": 4, "learning_rate": 1e-3}
HELD_OUT = {"validation_split": 0.4, "validation_steps": 2, "random_flip": True}


@pytest.mark.parametrize(
    ("family", "rules"),
    [("sd2", TEXT | HELD_OUT | {"shuffle_captions": True}), ("sdxl", DORA | HELD_OUT)],
)
def test_a_job_of_another_family_exports_both_files_and_a_resume_ends_bit_identical(
    tiny_families, pictures, tmp_path, family, rules
):
    shelf = BaseModelShelf()

    def job(name, **more):
        place = tmp_path / name
        return command(tiny_families[family], pictures, place, family=family, **rules, **more)

    whole, _ = run(job("whole"), shelf)
    assert len(digests(whole)) >= 2
    _, events = run(job("stopped"), shelf, stop_after=3)
    again, _ = run(job("on", resume_from=last_checkpoint(events)), shelf)
    assert again.metadata["resumed_at_step"] == 3
    assert again.metadata["resumed_exactly"]
    assert digests(again) == digests(whole)
    assert again.metadata["validation"] == whole.metadata["validation"]


def test_the_best_text_encoder_is_exported_with_the_best_unet(tiny_base_model, pictures, tmp_path):
    """At this rate the loss is no longer falling at the last look."""
    rules = TEXT | HELD_OUT | {"learning_rate": 1e-2}
    rules |= {"seed": 3}
    ended, _ = run(command(tiny_base_model, pictures, tmp_path, **rules, max_train_steps=10))
    validated = ended.metadata["validation"]
    assert validated["exported_step"] == validated["best_step"] < 10
    assert LAST_FILE in {file.name for file in ended.files}
    short = rules | {"validation_steps": 50, "max_train_steps": validated["best_step"]}
    early, _ = run(command(tiny_base_model, pictures, tmp_path / "early", **short))
    assert digests(early)[DIFFUSERS_FILE] == digests(ended)[DIFFUSERS_FILE]


def test_a_step_encodes_captions_with_the_text_encoder_as_it_is_now(
    tiny_base_model, pictures, tmp_path
):
    order = command(tiny_base_model, pictures, tmp_path, **TEXT, lora_dropout=0)
    _, trainee, lesson = build(order)
    [samples] = step_samples(lesson.plan, order.seed, 0, lesson.trained)
    batch = drawn(lesson, samples)
    with torch.no_grad():
        before = batch_losses(trainee, lesson, batch)
        for name, weight in trainee.weights.items():
            if name.startswith(TEXT_ENCODER):
                weight += 0.1
        after = batch_losses(trainee, lesson, batch)
        lesson.dataset.embeddings.states.zero_()
        assert torch.equal(batch_losses(trainee, lesson, batch), after)
    assert not torch.allclose(before, after, rtol=1e-4)
