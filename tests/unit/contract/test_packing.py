"""Which jobs share a pass, as a table."""

import pytest

from worker.contract.base_model import BaseModelEntry
from worker.contract.packing import company
from worker.contract.parameters import TrainingParameters

MODEL = BaseModelEntry(name="a", location="somewhere")


def of(model=MODEL, **rules):
    return company(TrainingParameters(**rules), model)


@pytest.mark.parametrize(
    "own",
    [
        {"rank": 64},
        {"rank": 1, "lora_alpha": 3},
        {"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 5},
        {"max_grad_norm": 0},
        {"max_train_steps": 7},
        {"num_train_epochs": 3},
        {"lora_dropout": 0},
        {"seed": 5},
        {"snr_gamma": 5.0, "noise_offset": 0.1},
        {"gradient_accumulation_steps": 4},
        {"random_flip": True, "center_crop": False, "caption_dropout_rate": 0.1},
        {"validation_split": 0.2},
        {"target_modules": ["to_out.0", "to_v", "to_k", "to_q"]},
        {"adam_beta1": 0.8, "adam_weight_decay": 0.1},
    ],
)
def test_what_is_a_jobs_own_does_not_part_it_from_others(own):
    assert of(**own) == of()
    hash(of(**own))


@pytest.mark.parametrize(
    "other",
    [
        {"model": MODEL.model_copy(update={"revision": "x"})},
        {"resolution": 64},
        {"mixed_precision": "bf16"},
        {"train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"target_modules": "attn-mlp"},
        {"rank": 65},
    ],
)
def test_jobs_whose_tensors_do_not_agree_do_not_share(other):
    assert of(**other) is not None
    assert of(**other) != of()


@pytest.mark.parametrize(
    "kind",
    [
        {"use_dora": True},
        {"train_text_encoder": True},
        {"aspect_ratio_buckets": True},
        {"optimizer": "prodigy"},
        {"optimizer": "adamw8bit"},
        {"optimizer": "adafactor"},
    ],
)
def test_other_kinds_are_always_alone(kind):
    assert of(**kind) is None
