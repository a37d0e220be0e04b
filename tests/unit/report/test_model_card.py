"""The card is read by the hub's own reader, whatever a message said."""

import re

import yaml
from huggingface_hub import ModelCard

from worker.report.model_card import model_card
from worker.report.snippets import snippets


def test_the_hub_reads_what_its_training_scripts_write(finished):
    manifest, _ = finished()
    data = ModelCard(model_card(manifest)).data.to_dict()
    assert data["base_model"] == "example/stable"
    assert data["library_name"] == "diffusers"
    assert data["license"] == "creativeml-openrail-m"
    assert data["instance_prompt"] == "hatchstyle"
    assert {"lora", "text-to-image", "diffusers-training", "stable-diffusion"} <= set(data["tags"])
    assert data["widget"][1] == {
        "text": "a circle, number 1",
        "output": {"url": "previews/after_01.png"},
    }


def test_the_code_of_the_card_is_python_and_names_the_file(finished):
    manifest, _ = finished(trigger_word='it\'s "quoted"```')
    [code] = re.findall(r"(`{3,})python\n(.*?)\n\1", model_card(manifest), re.DOTALL)
    compile(code[1], "card", "exec")
    assert '.load_lora_weights("lora_weights.safetensors")' in code[1]


def test_a_hostile_trigger_word_neither_breaks_the_yaml_nor_becomes_markup(finished):
    hostile = "a: b\n---\n# <script>alert(1)</script> `x` [y](javascript:z)"
    manifest, _ = finished(trigger_word=hostile, previews=0)
    card = model_card(manifest)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["instance_prompt"] == " ".join(hostile.split())
    outside_code = re.sub(r"(`+).*?\1", "", body, flags=re.DOTALL)
    assert "<script>" not in outside_code
    assert "javascript:" not in outside_code


def test_every_snippet_is_for_the_trained_strength_and_a_prompt_of_the_style(finished):
    manifest, _ = finished()
    for snippet in snippets(manifest):
        assert "a circle, number 0" in snippet.code
        said = " ".join([*snippet.steps, snippet.code])
        assert any(
            strength in said for strength in (":1>", "strength_model to 1", "at the strength")
        )
    diffusers = snippets(manifest)[0]
    compile(diffusers.code, "snippet", "exec")


def test_the_card_counts_the_pictures_that_were_trained_on(finished):
    manifest, _ = finished(pictures=10)
    facts = manifest.metadata | {"plan": {"pictures": 8}}
    card = model_card(manifest.model_copy(update={"metadata": facts}))
    assert "trained on 8 of 10 pictures for 100 steps" in card
    assert "| pictures | 8 of 10 |" in card
    assert "| pictures | 10 |" in model_card(manifest)


def test_of_a_training_that_was_interrupted_nobody_says_how_long_all_of_it_took(finished):
    manifest, _ = finished()
    assert "for 100 steps in 3 min 20 s" in model_card(manifest)
    resumed = manifest.model_copy(update={"metadata": {**manifest.metadata, "resumed": True}})
    assert "for 100 steps." in model_card(resumed)
