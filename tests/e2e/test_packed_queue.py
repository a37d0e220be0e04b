"""A queue through one worker whose trainer has several jobs: every job as if it had been alone."""

import pytest

from benchmarks.packed_queue import (
    WEIGHT_TOLERANCE,
    largest_difference,
    queue_of,
    run_through,
    told_otherwise,
)


@pytest.fixture
def real_site(site, base_model_catalogue):
    """A site whose base model is there."""
    site.catalogue = base_model_catalogue
    return site


@pytest.mark.timeout(900)
def test_jobs_that_share_passes_end_as_they_do_one_after_another(real_site, pictures):
    messages = queue_of(real_site, pictures, jobs=6, steps=20)
    plain = run_through(real_site, messages, slots=1)
    packed = run_through(real_site, messages, slots=4)
    assert [*plain.problems, *packed.problems] == []
    assert told_otherwise(plain, packed) == []
    assert packed.mean_company > 1.5
    assert packed.trainers == 1
    assert 0 < largest_difference(plain, packed) <= WEIGHT_TOLERANCE
