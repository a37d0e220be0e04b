"""Which picture, which part of it, which order of its tags: from counters, exactly as planned."""

import math
from collections import Counter

import pytest

from worker.contract.parameters import TrainingParameters, held_out_count
from worker.training.captions import MOST_ORDERS, caption_orders, orders_each
from worker.training.families.sd1 import StableDiffusion1
from worker.training.plan import make_plan
from worker.training.sampler import Sample, epoch_batches, held_out, step_samples, turn

#: Pictures of three sizes: many, some, and one.
BUCKETS = ((0, 2, 3, 5, 7, 8, 9), (1, 4, 6), (10,))


@pytest.mark.parametrize(
    ("rules", "steps"),
    [
        ({}, 11),
        # batches of 2: 4 + 2 + 1
        ({"train_batch_size": 2}, 7),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 3}, 3),
        ({"train_batch_size": 8}, 3),
    ],
)
def test_with_buckets_the_plan_knows_the_exact_number_of_steps(rules, steps):
    plan = make_plan(
        TrainingParameters(num_train_epochs=3, **rules),
        11,
        memory=StableDiffusion1.memory,
        free_bytes=0,
        buckets=[len(bucket) for bucket in BUCKETS],
    )
    assert (plan.steps_per_epoch, plan.total_steps) == (steps, 3 * steps)
    bucket_of = {picture: number for number, bucket in enumerate(BUCKETS) for picture in bucket}
    for epoch in range(3):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            micro_batches = step_samples(plan, 1, step, BUCKETS)
            samples = [sample for batch in micro_batches for sample in batch]
            assert 0 < len(samples) <= plan.group_size
            assert sorted(sample.position for sample in samples) == list(range(len(samples)))
            assert {(sample.step, sample.epoch) for sample in samples} == {(step, epoch)}
            for batch in micro_batches:
                assert len({bucket_of[sample.picture] for sample in batch}) == 1
                assert len(batch) <= plan.micro_batch
            seen += [sample.picture for sample in samples]
        assert sorted(seen) == list(range(11))


def test_batches_of_every_size_are_spread_over_the_pass_in_another_order_each():
    first, second = (epoch_batches(1, epoch, 2, BUCKETS) for epoch in (0, 1))
    assert first != second
    assert epoch_batches(1, 0, 2, BUCKETS) == first
    places = Counter(
        place
        for epoch in range(200)
        for place, (bucket, _) in enumerate(epoch_batches(1, epoch, 2, BUCKETS))
        if bucket == 2
    )
    assert set(places) == set(range(7))


@pytest.mark.parametrize("choices", [1, 2, 4, 8])
def test_every_variant_has_its_turn_once_in_as_many_passes(choices):
    turns = [turn(1, "crop", Sample(0, 0, 3, epoch), choices) for epoch in range(3 * choices)]
    for cycle in range(3):
        assert sorted(turns[cycle * choices : (cycle + 1) * choices]) == list(range(choices))
    if choices == 8:
        other_picture = [turn(1, "crop", Sample(0, 0, 4, epoch), 8) for epoch in range(24)]
        other_purpose = [turn(1, "order", Sample(0, 0, 3, epoch), 8) for epoch in range(24)]
        assert turns[:8] != turns[8:16]
        assert turns != other_picture != other_purpose != turns


@pytest.mark.parametrize(
    ("split", "pictures", "count"),
    [(0, 10, 0), (0.01, 10, 1), (0.1, 20, 2), (0.5, 3, 2), (0.5, 2, 1), (0.5, 1, 0)],
)
def test_at_least_one_picture_is_held_out_and_never_all(split, pictures, count):
    assert held_out_count(split, pictures) == count


def test_what_is_held_out_follows_from_the_seed_and_is_nowhere_twice():
    chosen = held_out(7, 20, 5)
    assert len(set(chosen)) == 5
    assert chosen == sorted(chosen) == held_out(7, 20, 5) != held_out(8, 20, 5)
    spared = held_out(7, 20, 5, doubled=chosen)
    assert not set(spared) & set(chosen)
    assert len(held_out(7, 20, 19, doubled=range(20))) == 19


def test_tags_come_in_distinct_orders_and_the_first_ones_stay():
    caption = "zkw, red,  fox, sea,night"
    orders = caption_orders(caption, seed=1, kept=2, most=8)
    assert orders[0] == caption
    assert len(set(orders)) == len(orders) == math.factorial(3)
    for order in orders:
        tags = [tag.strip() for tag in order.split(",")]
        assert tags[:2] == ["zkw", "red"]
        assert sorted(tags[2:]) == ["fox", "night", "sea"]
    assert caption_orders(caption, seed=1, kept=2, most=8) == orders
    assert len(caption_orders(caption, seed=1, kept=0, most=8)) == MOST_ORDERS


@pytest.mark.parametrize("caption", ["", "a fox by the sea", "zkw, fox"])
def test_what_cannot_be_shuffled_stays_as_it_is(caption):
    assert caption_orders(caption, seed=1, kept=1, most=8) == (caption,)


def test_equal_tags_make_no_order_of_their_own():
    assert caption_orders("fox, fox", seed=1, kept=0, most=8) == ("fox, fox",)


def test_a_thousand_captions_have_fewer_orders_so_that_they_fit():
    def orders(text_bytes):
        return [orders_each(n, text_bytes) for n in (1, 24, 128, 256, 1000, 5000)]

    assert orders(77 * 768 * 4) == [8, 8, 8, 8, 2, 2]
    # Stable Diffusion 3 attends to a twentyfold: eight orders of 24 captions are a GiB.
    assert orders(333 * 4096 * 4) == [8, 8, 2, 2, 2, 2]
