"""The words of a picture: the first that exist, with the trigger word where it is asked for."""

import json
import tracemalloc

import pytest

from worker.contract.captions import MAX_CAPTION, chosen_caption, with_trigger
from worker.contract.job import parse_message


@pytest.mark.parametrize(
    ("caption", "trigger_word", "expected"),
    [
        ("a [trigger] of a fox", "zkw style", "a zkw style of a fox"),
        ("[trigger], [trigger]", "zkw", "zkw, zkw"),
        # without a trigger word the placeholder leaves no trace
        ("a [trigger] of a fox", None, "a of a fox"),
        ("[trigger], fox, sea", None, "fox, sea"),
        ("fox, [trigger], sea", None, "fox, sea"),
        ("[trigger]", None, ""),
        # and a caption without one is as it was
        ("fox ,  sea,", None, "fox ,  sea,"),
    ],
)
def test_the_placeholder_becomes_the_trigger_word(caption, trigger_word, expected):
    assert with_trigger(caption, trigger_word) == expected


@pytest.mark.parametrize(
    ("message", "file", "template", "expected"),
    [
        ("of [trigger]", "file", "template", ("of zkw", "message")),
        ("", "file", "template", ("", "message")),
        (None, "[trigger] file", "template", ("zkw file", "file")),
        (None, None, "template", ("template", "template")),
        (None, None, "", ("", "none")),
    ],
)
def test_the_first_caption_that_exists_is_taken_and_its_source_said(
    message, file, template, expected
):
    found = chosen_caption(message=message, file=file, template=template, trigger_word="zkw")
    assert found == expected


@pytest.mark.parametrize(
    "words",
    [
        {"message": "[trigger] " * 400, "file": None, "template": ""},
        {"message": None, "file": "a word " * 2000, "template": ""},
        {"message": None, "file": None, "template": "a word " * 2000},
    ],
)
def test_no_caption_is_longer_than_a_message_can_give_again(words):
    caption, _ = chosen_caption(**words, trigger_word="a style of a hundred words " * 3)
    assert len(caption) == MAX_CAPTION
    sent = {"style_id": 1, "image_urls": [{"url": "s3://b/a.jpg", "caption": caption}]}
    [image] = parse_message(json.dumps(sent).encode()).job.images
    again, _ = chosen_caption(message=image.caption, file=None, template="", trigger_word="other")
    assert again == caption


def test_a_template_that_names_all_tags_again_and_again_costs_nothing():
    """166 times 100 tags that each name the trigger word 55 times: 90 MB, a picture."""
    message = {
        "style_id": 1,
        "image_urls": ["s3://b/a.jpg"],
        "trigger_word": "ab " * 33,
        "tags": ["[trigger]" * 55] * 100,
        "caption_template": "{tags}" * 166,
    }
    job = parse_message(json.dumps(message).encode()).job
    tracemalloc.start()
    assert len(job.template_caption()) == MAX_CAPTION
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 10_000_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"caption_template": "[trigger] in {tags}"}, "zkw in ink, night"),
        ({"caption_template": "{trigger} in {tags}"}, "zkw in ink, night"),
        ({}, "zkw, ink, night"),
        ({"trigger_word": None, "caption_template": "[trigger] {tags}"}, "ink, night"),
    ],
)
def test_the_template_knows_both_spellings_of_the_trigger_word(fields, expected):
    message = {
        "style_id": 1,
        "image_urls": ["s3://b/a.jpg"],
        "trigger_word": "zkw",
        "tags": ["ink", "night"],
        **fields,
    }
    assert parse_message(json.dumps(message).encode()).job.template_caption() == expected
