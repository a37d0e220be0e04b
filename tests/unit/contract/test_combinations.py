"""Options that cannot work with one another are refused by name, all of them at once."""

import json
from typing import get_args

import pytest
from pydantic import ValidationError

from worker.contract.base_model import BaseModelEntry, Family
from worker.contract.base_model_choice import chosen_base_model, for_base_model
from worker.contract.combinations import DEFAULT_LEARNING_RATE, conflicts
from worker.contract.errors import InvalidJob
from worker.contract.job import parse_message
from worker.contract.parameter_names import NOT_OFFERED
from worker.contract.parameters import TrainingParameters


def refused(**parameters):
    message = {"style_id": 1, "image_urls": ["s3://b/a.jpg"], "parameters": parameters}
    with pytest.raises(InvalidJob) as caught:
        parse_message(json.dumps(message).encode())
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("parameters", "field", "says"),
    [
        (
            {"learning_rate": 1.0},
            "learning_rate",
            "or equal to 0.01 with optimizer adamw",
        ),
        ({"learning_rate": 0.1, "optimizer": "adafactor"}, "learning_rate", "optimizer adafactor"),
        ({"learning_rate": 1e-4, "optimizer": "prodigy"}, "learning_rate", "send 1.0, or none"),
        ({"adam_beta1": 0.8, "optimizer": "adafactor"}, "adam_beta1", "not an option of optimizer"),
        ({"adam_beta2": 0.9, "optimizer": "adafactor"}, "adam_beta2", "or 0.999"),
        ({"adam_epsilon": 1e-6, "optimizer": "adafactor"}, "adam_epsilon", "or 1e-08"),
        ({"text_encoder_learning_rate": 1e-5}, "text_encoder_learning_rate", "has no effect"),
        (
            {
                "text_encoder_learning_rate": 1e-5,
                "train_text_encoder": True,
                "optimizer": "prodigy",
            },
            "text_encoder_learning_rate",
            "one rate for all",
        ),
        ({"use_dora": True, "train_text_encoder": True}, "use_dora", "send one of them"),
        ({"lr_warmup_steps": 5}, "lr_warmup_steps", "send lr_scheduler constant_with_warmup"),
        ({"preview_points": 2, "validation_prompts": []}, "preview_points", "no previews"),
        ({"with_prior_preservation": True}, "class_prompt", "is missing"),
        ({"class_prompt": "a cat"}, "class_prompt", "send with_prior_preservation true"),
        ({"num_class_images": 9}, "num_class_images", "no effect"),
        ({"prior_loss_weight": 0.5}, "prior_loss_weight", "no effect"),
    ],
)
def test_what_cannot_work_together_is_named_with_what_to_send(parameters, field, says):
    found = refused(**parameters)
    assert list(found) == [f"parameters.{field}"]
    assert says in found[f"parameters.{field}"]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"learning_rate": 1e-2},
        {"optimizer": "prodigy"},
        {"optimizer": "prodigy", "learning_rate": 0.5, "adam_beta2": 0.99},
        {"optimizer": "adafactor", "adam_weight_decay": 0.1},
        {"optimizer": "adamw8bit", "adam_beta1": 0.8},
        {"train_text_encoder": True, "text_encoder_learning_rate": 1e-5},
        {"train_text_encoder": True, "optimizer": "prodigy"},
        {"use_dora": True, "optimizer": "adafactor", "lora_dropout": 0.5},
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 5},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 5},
        {"prior_preservation": True, "class_prompt": "a cat", "prior_loss_weight": 0.5},
    ],
)
def test_what_can_work_together_is_accepted(parameters):
    rules = TrainingParameters(**parameters)
    assert conflicts(dict(rules)) == []


def test_every_conflict_is_named_at_once():
    found = refused(optimizer="adafactor", adam_beta1=0.5, learning_rate=1, lr_warmup_steps=1)
    assert set(found) == {
        "parameters.adam_beta1",
        "parameters.learning_rate",
        "parameters.lr_warmup_steps",
    }


@pytest.mark.parametrize(
    ("rules", "field", "says"),
    [
        ({"train_text_encoder": True}, "train_text_encoder", "several text encoders"),
        ({"snr_gamma": 5.0}, "snr_gamma", "learns a flow"),
        ({"prediction_type": "epsilon"}, "prediction_type", "send none"),
        ({"resolution": 1000}, "resolution", "multiple of 16"),
        ({"resolution": 1600}, "resolution", "at most 1536"),
        ({"aspect_ratio_buckets": True}, "resolution", "half of it with aspect_ratio_buckets"),
        (
            {"aspect_ratio_buckets": True, "resolution": 64},
            "aspect_ratio_buckets",
            "of at least 128",
        ),
    ],
)
def test_what_a_base_with_flow_matching_cannot_do_is_named(rules, field, says):
    catalogue = {"3": BaseModelEntry(name="3", location="x", family="sd3")}
    with pytest.raises(InvalidJob) as caught:
        chosen_base_model(TrainingParameters(**rules), catalogue, "3")
    [(name, what)] = caught.value.problems
    assert name == f"parameters.{field}"
    assert says in what


def test_presets_name_the_layers_of_text_too_where_blocks_join_text_and_picture():
    three = BaseModelEntry(name="3", location="x", family="sd3")
    one = BaseModelEntry(name="1", location="x", family="sd1")
    attention, all_ = (TrainingParameters(target_modules=preset) for preset in ("attn", "attn-mlp"))
    assert set(for_base_model(attention, three).target_modules) - set(attention.target_modules) == {
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    }
    assert "ff_context.net.2" in for_base_model(all_, three).target_modules
    assert for_base_model(all_, one).target_modules == all_.target_modules
    chosen = TrainingParameters(target_modules=["to_q"])
    assert for_base_model(chosen, three).target_modules == ("to_q",)
    twice = for_base_model(for_base_model(attention, three), three)
    assert twice == for_base_model(attention, three)


@pytest.mark.parametrize("optimizer", DEFAULT_LEARNING_RATE)
def test_each_optimizer_has_a_default_rate_that_survives_the_pipe(optimizer):
    rules = TrainingParameters(optimizer=optimizer)
    assert rules.learning_rate == DEFAULT_LEARNING_RATE[optimizer]
    assert TrainingParameters.model_validate_json(rules.model_dump_json()) == rules


def test_a_broken_field_is_named_by_itself():
    with pytest.raises(ValidationError) as caught:
        TrainingParameters(rank=0, optimizer="prodigy", learning_rate=1e-4)
    assert [error["loc"] for error in caught.value.errors()] == [("rank",)]


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_other_trainers_have_and_this_one_has_not_is_refused_by_name(name):
    assert "is not offered" in refused(**{name: True})[f"parameters.{name}"]
    assert name not in TrainingParameters.model_fields


CATALOGUE = {
    family: BaseModelEntry(name=family, location="x", family=family) for family in get_args(Family)
}


def test_a_base_model_with_two_text_encoders_refuses_to_train_them():
    rules = TrainingParameters(train_text_encoder=True, base_model="sdxl")
    with pytest.raises(InvalidJob, match=r"parameters\.train_text_encoder: cannot be with this"):
        chosen_base_model(rules, CATALOGUE, "sd1")
    assert chosen_base_model(TrainingParameters(use_dora=True), CATALOGUE, "sdxl").name == "sdxl"


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_base_model_with_one_text_encoder_can_train_it(family):
    rules = TrainingParameters(train_text_encoder=True)
    assert chosen_base_model(rules, CATALOGUE, family) == CATALOGUE[family]


def test_a_base_model_that_is_not_in_the_catalogue_is_refused_with_those_that_are():
    with pytest.raises(InvalidJob, match="it has sd1, sd2, sd3, sdxl"):
        chosen_base_model(TrainingParameters(base_model="flux"), CATALOGUE, "sd1")
