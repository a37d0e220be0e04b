"""The layout of keys is the contract's."""

import pytest

from worker.storage.keys import JobKeys, StyleKeys
from worker.storage.store import ObjectUrl


def test_a_styles_keys() -> None:
    style = StyleKeys("models-bucket", 10)
    prefix = "s3://models-bucket/models/style_10/"
    assert str(style.prefix) == prefix
    assert str(style.adapter) == prefix + "lora_weights.safetensors"
    assert str(style.stable("previews/000.png")) == prefix + "previews/000.png"
    assert str(style.job_prefix("job-1")) == prefix + "jobs/job-1/"
    assert str(style.current) == prefix + "current.json"


def test_a_jobs_keys() -> None:
    keys = JobKeys("bucket", "550e8400")
    prefix = "s3://bucket/jobs/550e8400/"
    assert str(keys.lease) == prefix + "lease.json"
    assert str(keys.result) == prefix + "result.json"
    assert str(keys.cancel) == prefix + "cancel.json"
    assert str(keys.checkpoint) == prefix + "checkpoint.json"
    assert str(keys.delivered) == prefix + "delivered.json"


def test_two_claims_never_write_one_file() -> None:
    keys = JobKeys("bucket", "1")
    files = {str(keys.checkpoint_file(epoch, step)) for epoch in (1, 2) for step in (5, 50)}
    assert len(files) == 4
    assert all(file.startswith(str(keys.checkpoints)) for file in files)
    assert keys.output_prefix(1) != keys.output_prefix(2)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a/b.jpg", "s3://bucket/", "s3://b.u-c_k/a b?c#d%20", "s3://bucket//a"]
)
def test_an_address_reads_back_as_written(text: str) -> None:
    assert str(ObjectUrl.parse(text)) == text


def test_the_key_is_taken_literally() -> None:
    assert ObjectUrl.parse("s3://bucket/a%20b?c#d") == ObjectUrl("bucket", "a%20b?c#d")
    assert ObjectUrl.parse("s3://bucket") == ObjectUrl("bucket", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bucket/key",
        "https://bucket/key",
        "S3://bucket/key",
        "s3:///key",
        "s3://b/key",
        "s3://user@bucket/key",
        "s3://bu cket/key",
        "s3://-bucket/key",
        "s3://bucket/a\nb",
        "s3://bucket/\udc80",
        "s3://bucket/" + "ö" * 513,
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        ObjectUrl.parse(text)


def test_a_child_has_one_slash() -> None:
    assert (
        ObjectUrl("b", "a/").child("c") == ObjectUrl("b", "a").child("c") == ObjectUrl("b", "a/c")
    )
    assert ObjectUrl("b", "").child("c") == ObjectUrl("b", "c")
