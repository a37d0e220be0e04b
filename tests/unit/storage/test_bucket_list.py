"""A message names pictures where the operator allows it, and nowhere else."""

import pytest

from worker.storage.bucket_list import BucketList
from worker.storage.store import ObjectUrl


def why_not(url, *entries):
    return BucketList(entries, own_bucket="results").why_not(ObjectUrl.parse(url))


@pytest.mark.parametrize(
    ("url", "entries", "allowed"),
    [
        ("s3://media/1.jpg", ["media"], True),
        ("s3://media/any/where/1.jpg", ["other", "media"], True),
        ("s3://media/train/1.jpg", ["media/train/"], True),
        ("s3://media/train/1.jpg", ["s3://media/train/"], True),
        ("s3://media2/1.jpg", ["media"], False),
        ("s3://medi/1.jpg", ["media"], False),
        ("s3://Media/1.jpg", ["media"], False),
        ("s3://media/trainers/1.jpg", ["media/train/"], False),
        ("s3://media/other/train/1.jpg", ["media/train/"], False),
        ("s3://media/TRAIN/1.jpg", ["media/train/"], False),
        ("s3://media//train/1.jpg", ["media/train/"], False),
        ("s3://media/%74rain/1.jpg", ["media/train/"], False),
        ("s3://results/models/style_1/previews/1.png", ["media"], False),
        ("s3://results/models/style_1/previews/1.png", ["results"], True),
    ],
)
def test_an_entry_allows_its_bucket_or_folder_alone(url, entries, allowed):
    found = why_not(url, *entries)
    assert found == (None if allowed else "is not in one of the buckets of IMAGE_ALLOWED_BUCKETS")


@pytest.mark.parametrize(
    "key",
    ["../results/1.jpg", "train/../../results/1.jpg", "train/./1.jpg", "train/..", "..", "."],
)
@pytest.mark.parametrize("entries", [(), ("media",), ("media/train/",)])
def test_no_key_climbs_out_of_its_folder(key, entries):
    assert why_not(f"s3://media/{key}", *entries) == "has . or .. in its key"


@pytest.mark.parametrize("key", ["models/style_2/previews/000.png", "jobs/a/output/1.png"])
def test_without_a_list_every_bucket_is_allowed_but_for_the_workers_own_files(key):
    assert why_not("s3://media/1.jpg") is None
    assert why_not("s3://results/training/1.jpg") is None
    assert why_not(f"s3://media/{key}") is None
    assert why_not(f"s3://results/{key}") == "lies among the worker's own files"


@pytest.mark.parametrize("entry", ["media/train", "a", "", "s3://", "https://media", "me dia"])
def test_an_entry_that_is_none_is_named(entry):
    with pytest.raises(ValueError, match="is not a bucket or bucket/folder/"):
        BucketList([entry], own_bucket="results")
