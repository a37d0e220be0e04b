"""What the scaling benchmark concludes from three journals: published, stored, received."""

import pytest

from benchmarks.scaling import account

DONE = ["jobs/a/result.json", "jobs/a/output/1/lora_weights.safetensors", "jobs/a/lease.json"]


def test_a_job_that_is_stored_once_and_told_once_is_in_order() -> None:
    assert set(account(["a"], DONE, {"a": ["complete"]}).values()) == {0}


@pytest.mark.parametrize(
    ("keys", "ends", "finding"),
    [
        (DONE[1:], {"a": ["complete"]}, "lost"),
        (DONE, {}, "lost"),
        (DONE, {"a": ["complete", "complete"]}, "duplicated"),
        ([*DONE, "jobs/a/output/2/lora_weights.safetensors"], {"a": ["complete"]}, "retrained"),
        (DONE, {"a": ["failed"]}, "failed"),
    ],
)
def test_each_thing_that_can_go_wrong_is_found(
    keys: list[str], ends: dict[str, list[str]], finding: str
) -> None:
    found = account(["a"], keys, ends)
    assert [name for name, count in found.items() if count] == [finding]


def test_jobs_of_others_do_not_count() -> None:
    assert set(account([], DONE, {"a": ["complete", "failed"]}).values()) == {0}
