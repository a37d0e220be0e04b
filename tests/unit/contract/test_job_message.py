"""Both message shapes become one job; what is wrong is named, all of it at once."""

import json
import time

import pytest

from worker.contract.errors import ErrorCode, InvalidJob
from worker.contract.job import digest_id, parse_message, webhook_base

FLAT = {
    "style_id": 10,
    "image_urls": ["s3://stylelicense-media/training/10/a.jpg"],
    "webhook_url": "https://api.example.com",
}
ENVELOPED = {
    "task_id": "550e8400-e29b-41d4-a716-446655440000",
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": ["s3://stylelicense-media/training/123/1.jpg"],
        "tags": ["watercolor", "portrait"],
        "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1},
    },
    "webhook_url": "https://api.example.com/api/webhooks/training/123/status",
    "created_at": "2025-01-20T10:00:00.000Z",
}


def parse(message, **options):
    return parse_message(json.dumps(message).encode(), **options)


def problems(message):
    with pytest.raises(InvalidJob) as caught:
        parse(message)
    assert caught.value.code is ErrorCode.INVALID_JOB
    assert not caught.value.transient
    return dict(caught.value.problems)


def test_the_flat_shape_is_read():
    job = parse(FLAT, message_id="m-1").job
    assert (job.job_id, job.style_id) == ("m-1", 10)
    assert [image.url for image in job.images] == FLAT["image_urls"]
    assert job.webhook_url == "https://api.example.com"
    assert job.parameters.rank == 16
    assert job.parameters.lora_alpha == 32


def test_the_enveloped_shape_is_read_with_its_short_names():
    job = parse(ENVELOPED).job
    assert job.job_id == ENVELOPED["task_id"]
    assert job.parameters.num_train_epochs == 200
    assert job.webhook_url == "https://api.example.com"
    assert job.template_caption() == "watercolor, portrait"


def test_the_ids_of_the_body_win_over_the_broker_s():
    assert parse(ENVELOPED, message_id="other").job.job_id == ENVELOPED["task_id"]


def test_a_body_without_any_id_is_known_by_a_digest_that_ignores_key_order():
    first, second = parse(FLAT), parse(dict(reversed(FLAT.items())))
    assert first.id_is_digest
    assert first.job.job_id == second.job.job_id == digest_id(FLAT)
    assert parse({**FLAT, "style_id": 11}).job.job_id != first.job.job_id


def test_images_may_be_objects_with_captions():
    job = parse({**FLAT, "image_urls": [{"url": "s3://b/a.jpg", "caption": "a red hat"}]}).job
    assert job.images[0].caption == "a red hat"


@pytest.mark.parametrize("envelope", [False, True])
def test_pictures_of_the_class_stand_beside_the_images(envelope):
    fields = {
        **{"style_id": 1, "image_urls": ["s3://b/a.jpg"]},
        "class_images": ["s3://b/c.jpg", {"url": "s3://b/d.jpg", "caption": "a house"}],
        "parameters": {"prior_preservation": True, "class_prompt": "a building"},
    }
    body = {"type": "model_training", "data": fields} if envelope else fields
    job = parse_message(json.dumps(body).encode()).job
    assert job.wanted_images == [
        ("s3://b/a.jpg", None),
        ("s3://b/c.jpg", "a building"),
        ("s3://b/d.jpg", "a house"),
    ]


@pytest.mark.parametrize(
    ("rules", "field", "says"),
    [
        ({}, "class_images", "send it as true"),
        (
            {"with_prior_preservation": True, "class_prompt": "x", "num_class_images": 7},
            "parameters.num_class_images",
            "send one of them",
        ),
        ({"class_images": ["s3://b/c.jpg"]}, "parameters.class_images", "beside them"),
    ],
)
def test_what_is_said_of_the_class_and_has_no_effect_is_refused(rules, field, says):
    body = {
        **{"style_id": 1, "image_urls": ["s3://b/a.jpg"], "parameters": rules},
        **({} if "class_images" in rules else {"class_images": ["s3://b/c.jpg"] * 2}),
    }
    with pytest.raises(InvalidJob) as caught:
        parse_message(json.dumps(body).encode())
    assert [name for name, _ in caught.value.problems] == [field]
    assert says in caught.value.problems[0][1]


def test_unknown_fields_outside_parameters_are_ignored_and_named():
    parsed = parse({**ENVELOPED, "priority": 3, "data": {**ENVELOPED["data"], "colour": "red"}})
    assert set(parsed.ignored_fields) == {"priority", "data.colour"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"hello", "not JSON"),
        (b"[1, 2]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body, says):
    with pytest.raises(InvalidJob, match=says):
        parse_message(body)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"style_id": None}, "style_id", "is missing"),
        ({"style_id": "10"}, "style_id", "valid integer, found '10'"),
        ({"style_id": 0}, "style_id", "greater than 0"),
        ({"style_id": True}, "style_id", "valid integer"),
        ({"image_urls": []}, "image_urls", "is empty"),
        ({"image_urls": None}, "image_urls", "is missing"),
        ({"image_urls": "s3://b/a.jpg"}, "image_urls", "valid tuple"),
        ({"image_urls": ["ftp://b/a.jpg"]}, "image_urls.0.url", "must start with one of s3://"),
        ({"type": "something_else"}, "type", "must be 'model_training'"),
        ({"tags": ["ink", "x" * 501]}, "tags.1", "at most 500 characters"),
        ({"job_id": "../../etc"}, "job_id", "match pattern"),
        ({"parameters": {"rank": 0}}, "parameters.rank", "greater than or equal to 1, found 0"),
        ({"parameters": {"rank": 257}}, "parameters.rank", "less than or equal to 256"),
        ({"parameters": {"learning_rate": 1}}, "parameters.learning_rate", "less than or equal"),
        ({"parameters": {"resolution": 500}}, "parameters.resolution", "multiple of 8"),
        ({"parameters": {"target_modules": "att"}}, "parameters.target_modules", "attn-mlp"),
        ({"parameters": {"batch_size": 2}}, "parameters.train_batch_size", "2 with 1 pictures"),
        ({"parameters": {"lora_rank": 4, "rank": 8}}, "parameters.lora_rank", "another name of"),
        ({"parameters": {"keep_tokens": 1}}, "parameters.keep_tokens", "is for shuffle_captions"),
        (
            {"parameters": {"early_stopping_patience": 3}},
            "parameters.early_stopping_patience",
            "is for validation_split, which is 0",
        ),
        (
            {"parameters": {"validation_split": 0.5}},
            "parameters.validation_split",
            "holds out pictures, and there is 1; send 2",
        ),
        (
            {
                "image_urls": ["s3://b/a.jpg", "s3://b/b.jpg"],
                "parameters": {"validation_split": 0.01, "batch_size": 2},
            },
            "parameters.train_batch_size",
            "2 with 2 pictures, of which 1 are held out",
        ),
        ({"parameters": {"learning_rat": 1}}, "parameters.learning_rat", "mean learning_rate?"),
    ],
)
def test_a_broken_field_is_named_with_what_was_found(change, field, says):
    assert says in problems({**FLAT, **change})[field]


def test_every_broken_field_is_named_at_once():
    found = problems(
        {"image_urls": ["x"], "type": "y", "parameters": {"rank": 0, "seed": -1, "zzz": 1}}
    )
    assert set(found) == {
        "type",
        "style_id",
        "image_urls.0.url",
        "parameters.rank",
        "parameters.seed",
        "parameters.zzz",
    }


def test_more_pictures_than_the_operator_allows_are_refused():
    many = {**FLAT, "image_urls": [f"s3://b/{i}.jpg" for i in range(4)]}
    with pytest.raises(InvalidJob, match="has 4 pictures; at most 3"):
        parse(many, max_images=3)


def test_what_can_be_read_of_a_broken_message_is_kept_so_that_the_sender_hears_of_it():
    with pytest.raises(InvalidJob) as caught:
        parse({**ENVELOPED, "data": {**ENVELOPED["data"], "images": []}})
    error = caught.value
    assert (error.style_id, error.webhook_base) == (123, "https://api.example.com")
    assert error.job_id == ENVELOPED["task_id"]


def test_nan_and_infinity_are_refused():
    body = json.dumps({**FLAT, "parameters": {"learning_rate": float("nan")}}).encode()
    with pytest.raises(InvalidJob, match=r"parameters\.learning_rate"):
        parse_message(body)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://a.example/x/api/webhooks/training/1/status", "https://a.example/x"),
        ("http://a:8000", "http://a:8000"),
    ],
)
def test_a_webhook_address_is_cut_to_its_base(url, base):
    assert webhook_base(url) == base


def test_the_seed_comes_from_the_job_id_unless_one_is_sent():
    first, second = parse(FLAT, message_id="a").job, parse(FLAT, message_id="b").job
    assert first.seed == parse(FLAT, message_id="a").job.seed
    assert first.seed != second.seed
    assert parse({**FLAT, "parameters": {"seed": 7}}).job.seed == 7


def test_a_template_is_filled_with_trigger_and_tags():
    message = {
        **FLAT,
        "trigger_word": "sks",
        "tags": ["ink", "paper"],
        "caption_template": "a picture in {trigger} style, {tags}",
    }
    assert parse(message).job.template_caption() == "a picture in sks style, ink, paper"
    assert parse(FLAT).job.template_caption() == ""


HUGE = {
    "pictures": {"image_urls": ["s3://b/a.jpg"] * 300_000},
    "pictures that are none": {"image_urls": ["x"] * 800_000},
    "tags that are none": {"tags": [[]] * 1_200_000},
    "modules that are none": {"parameters": {"target_modules": [[]] * 1_200_000}},
    "prompts that are none": {"parameters": {"validation_prompts": [[]] * 1_200_000}},
    "parameters": {"parameters": {f"p{n}": 1 for n in range(300_000)}},
    "one name": {"parameters": {"a" * 3_000_000: 1}},
    "a type": {"type": "x" * 4_000_000},
    "digits": {"seed": 1, "style_id": 10**4000},
}


@pytest.mark.parametrize("what", HUGE)
def test_a_message_of_megabytes_is_refused_in_a_moment_and_a_few_words(what):
    body = json.dumps({**FLAT, **HUGE[what]}).encode()
    began = time.process_time()
    with pytest.raises(InvalidJob) as caught:
        parse_message(body)
    assert time.process_time() - began < 3
    assert len(caught.value.message) <= 4000


def test_fields_that_are_ignored_are_named_in_a_few_words():
    many = {f"field {n}\x1b[31m" + "x" * 500: 1 for n in range(5_000)}
    named = parse({**FLAT, **many}).ignored_fields
    assert len(named) == 21
    assert named[-1] == "and 4980 more"
    assert all(name.isprintable() and len(name) <= 64 for name in named)


@pytest.mark.parametrize("depth", [63, 64, 900, 200_000])
def test_how_deep_a_body_may_be_does_not_depend_on_who_reads_it(depth):
    body = json.dumps(FLAT)[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    if depth == 63:
        assert parse_message(body).ignored_fields == ("x",)
    else:
        with pytest.raises(InvalidJob, match=r"nested more than 64 deep|not JSON"):
            parse_message(body)


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "two\nlines", "\ud800", "\x9b31m", "\u202etxt", "nul\x00"]
)
def test_what_a_stranger_wrote_is_said_again_without_control_characters(text):
    body = json.dumps({**FLAT, "parameters": {text: 1}, "type": text}).encode()
    with pytest.raises(InvalidJob) as caught:
        parse_message(body)
    assert caught.value.message.isprintable()
    caught.value.message.encode()


@pytest.mark.parametrize(("given", "id_"), [(7, "7"), (0, "0")])
def test_a_number_may_be_an_id(given, id_):
    assert parse({**FLAT, "job_id": given}).job.job_id == id_


def test_true_is_no_id():
    assert "job_id" in problems({**FLAT, "job_id": True})


def test_a_key_that_no_database_holds_is_not_told_to_anybody():
    with pytest.raises(InvalidJob) as caught:
        parse({**FLAT, "style_id": 2**63})
    assert caught.value.style_id is None


def test_a_null_in_the_envelope_hides_nothing_beside_it():
    data = {**ENVELOPED["data"], "webhook_url": None, "task_id": None}
    job = parse({**ENVELOPED, "data": data}).job
    assert job.job_id == ENVELOPED["task_id"]
    assert job.webhook_url == "https://api.example.com"


def test_a_refused_message_says_whether_its_id_is_its_own():
    for message, own in (({**FLAT, "job_id": "j"}, True), (FLAT, False)):
        with pytest.raises(InvalidJob) as caught:
            parse({**message, "image_urls": []})
        assert caught.value.id_is_digest != own
