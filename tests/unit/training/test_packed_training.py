"""Jobs that share passes come to what each comes to alone, whatever becomes of the others."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from tests.unit.training.builders import build, command, largest_difference, load, weights_of
from tests.unit.training.together import Side, sides, train_alone, train_together
from worker.contract.errors import ErrorCode
from worker.training.checkpoint import load_checkpoint, save_checkpoint
from worker.training.packing.shared_pass import SharedPass
from worker.training.sampler import step_samples
from worker.training.step import Work, drawn, pass_alone

#: Four jobs that differ in all that may differ.
JOBS = [
    {"rank": 4, "learning_rate": 1e-3, "max_train_steps": 7, "lora_dropout": 0.1},
    {
        **{"rank": 16, "learning_rate": 5e-4, "max_train_steps": 5, "max_grad_norm": 0.01},
        **{"lr_scheduler": "cosine", "lora_dropout": 0.1, "snr_gamma": 5.0},
    },
    {
        **{"rank": 8, "lora_alpha": 3, "learning_rate": 2e-3, "max_train_steps": 8},
        **{"lora_dropout": 0.1, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 3},
        **{"noise_offset": 0.1, "adam_beta1": 0.8, "adam_weight_decay": 0.1},
    },
    {
        **{"rank": 16, "learning_rate": 1e-3, "max_train_steps": 6, "max_grad_norm": 0},
        **{"lora_dropout": 0.3, "gradient_accumulation_steps": 2, "random_flip": True},
    },
]

#: Sums of products are blocked otherwise with more rows, and AdamW makes more of that.
TOLERANCE = {True: 1e-12, False: 5e-5}


@pytest.fixture
def orders(tiny_base_model, pictures, tmp_path):
    return [
        command(
            tiny_base_model,
            pictures[place : place + 3],
            tmp_path / str(place),
            job_id=str(place),
            seed=place,
            **rules,
        )
        for place, rules in enumerate(JOBS)
    ]


@pytest.fixture
def in_step(orders):
    """The same, each with one micro-batch in a step, so that all can be stopped after one pass."""
    update = {"gradient_accumulation_steps": 1}
    return [
        order.model_copy(update={"parameters": order.parameters.model_copy(update=update)})
        for order in orders
    ]


def assert_same(some: list[Side], others: list[Side], tolerance: float) -> None:
    for one, other in zip(some, others, strict=True):
        difference = largest_difference(weights_of(one.trainee), weights_of(other.trainee))
        assert difference <= tolerance
        losses = one.trainee.losses - other.trainee.losses
        assert losses.abs().max() <= tolerance
        assert torch.equal(one.trainee.rates, other.trainee.rates)
        assert one.trainee.step == other.trainee.step


@pytest.mark.parametrize("double", [True, False])
def test_four_jobs_with_nothing_in_common_but_the_base_end_as_each_does_alone(orders, double):
    separate = [train_alone(side) for side in sides(orders, double=double)]
    packed = sides(orders, double=double)
    start = [weights_of(side.trainee) for side in packed]
    train_together(packed)
    assert {side.ended for side in packed} == {None}
    assert_same(packed, separate, TOLERANCE[double])
    for side, begun in zip(packed, start, strict=True):
        assert largest_difference(weights_of(side.trainee), begun) > 1e-3
    # Five passes of four, two of three, one of two; the last job needs two for a step.
    assert packed[1].summary == {"packing": {"slots": 4, "mean_company": 4.0}}
    assert packed[3].summary["packing"]["mean_company"] < 4
    assert packed[3].company is None


def test_jobs_with_pictures_of_a_class_share_passes_each_with_its_own_weight_of_them(
    tiny_base_model, pictures, tmp_path
):
    orders = [
        command(
            tiny_base_model,
            pictures[:3],
            tmp_path / str(place),
            class_pictures=pictures[3:5],
            seed=place,
            max_train_steps=4,
            with_prior_preservation=True,
            class_prompt="a shape",
            prior_loss_weight=weight,
        )
        for place, weight in enumerate((0.25, 2.0))
    ]
    separate = [train_alone(side) for side in sides(orders, double=True)]
    packed = sides(orders, double=True)
    train_together(packed)
    assert_same(packed, separate, TOLERANCE[True])
    assert packed[0].summary["packing"]["mean_company"] == 2


def test_with_activations_recomputed_and_other_layers_it_is_the_same(
    tiny_base_model, pictures, tmp_path
):
    orders = [
        command(
            tiny_base_model,
            pictures[:2],
            tmp_path / str(place),
            seed=place,
            rank=rank,
            max_train_steps=3,
            gradient_checkpointing=True,
            target_modules=["attn1.to_q", "to_k", "ff.net.2", "conv1", "time_emb_proj"],
            train_batch_size=2,
        )
        for place, rank in enumerate((3, 8))
    ]
    separate = [train_alone(side) for side in sides(orders, double=True)]
    packed = sides(orders, double=True)
    train_together(packed)
    assert_same(packed, separate, TOLERANCE[True])
    assert packed[0].company


def turns_nan(step: int):
    def poison(trainee):
        if trainee.step == step:
            with torch.no_grad():
                trainee.adapter.buffer[::3] = torch.nan

    return poison


@pytest.mark.parametrize("double", [True, False])
def test_a_job_that_turns_nan_one_that_is_canceled_and_one_that_ends_leave_the_others_alone(
    orders, double
):
    separate = [train_alone(side) for side in sides(orders, double=double)]
    packed = sides(orders, double=double)
    packed[0].after_step = turns_nan(2)
    packed[3].should_stop = lambda trainee: "cancel" if trainee.step == 3 else None
    train_together(packed)
    assert packed[0].ended.code is ErrorCode.NON_FINITE_LOSS
    assert "step 3" in packed[0].ended.message
    assert packed[3].ended == "cancel"
    assert packed[3].trainee.step == 3
    assert_same(packed[1:3], separate[1:3], TOLERANCE[double])


def test_one_jobs_overflow_in_fp16_is_skipped_by_its_own_scaler_alone(orders):
    def scaled(side, *, overflows_after):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        side.trainee.accelerator.scaler = scaler
        inner = side.trainee.optimizer.optimizer
        side.trainee.optimizer = AcceleratedOptimizer(inner, scaler=scaler)

        def overflow(trainee):
            if trainee.step == overflows_after:
                scaler._scale.fill_(3e38)

        side.after_step = overflow
        return side

    def all_scaled():
        return [
            scaled(side, overflows_after=2 if place == 1 else None)
            for place, side in enumerate(sides(orders))
        ]

    separate = [train_alone(side) for side in all_scaled()]
    packed = all_scaled()
    train_together(packed)
    assert_same(packed, separate, TOLERANCE[False])
    counted = [int(side.trainee.optimizer.optimizer.steps_done) for side in packed]
    assert counted[1] < 5
    assert (counted[0], counted[2], counted[3]) == (7, 8, 6)
    scales = [float(side.trainee.accelerator.scaler.get_scale()) for side in packed]
    assert scales[0] == scales[2] == scales[3] == 2.0**10
    assert 1e36 < scales[1] < 3e38


def test_over_a_half_precision_base_each_gets_the_gradient_that_it_has_alone(orders):
    """On a GPU all bases are; matrices are cast to the products' dtype, gradients back to fp32."""
    model = load(orders[0])
    model.unet.to(torch.bfloat16)
    built = [build(order, model=model)[1:] for order in orders]
    works = []
    for trainee, lesson in built:
        with torch.no_grad():
            source = torch.Generator().manual_seed(1)
            trainee.adapter.buffer.add_(
                0.02 * torch.randn(trainee.adapter.buffer.shape, generator=source)
            )
        batch = drawn(lesson, step_samples(lesson.plan, lesson.seed, 0, lesson.trained)[0])
        works.append(Work(trainee, lesson, batch, torch.ones(()), lesson.seed))
    losses = [float(pass_alone(work)) for work in works]
    expected = [trainee.adapter.buffer.grad for trainee, _ in built]
    for trainee, _ in built:
        trainee.adapter.buffer.grad = None
    shared = SharedPass(built[0][0].unet, orders[0].parameters.target_modules)
    assert [float(loss) for loss in shared(works)] == pytest.approx(losses, rel=1e-2)
    assert shared._arithmetic.rows._rows.dtype == torch.bfloat16
    for (trainee, _), gradient in zip(built, expected, strict=True):
        given = trainee.adapter.buffer.grad
        assert given.dtype == torch.float32
        assert (given - gradient).abs().max() < 2e-2 * gradient.abs().max()


def test_what_ranks_do_not_fill_stays_zero(orders):
    packed = sides(orders)
    seen = []

    def looked_at(shared):
        def look(works):
            losses = shared(works)
            rows = shared.__self__._shared[1]._arithmetic.rows
            for place, work in enumerate(works):
                filled = rows._rows[place].count_nonzero()
                # B is zero before the first step.
                most = work.trainee.adapter.buffer.count_nonzero()
                seen.append((int(filled), int(most), work.trainee.adapter.rank, rows._rank))
            return losses

        return look

    train_together(packed, looked_at)
    assert {rank for *_, rank, _ in seen} == {4, 8, 16}
    for filled, nonzero, _, _ in seen:
        assert filled == nonzero


def interrupted(orders, folder, *, after):
    """Train together, stop all after the same pass; their checkpoints."""
    halves = sides(orders)
    for half in halves:
        half.should_stop = lambda trainee: "drain" if trainee.step == after else None
    train_together(halves)
    assert {half.ended for half in halves} == {"drain"}
    return [
        save_checkpoint(half.trainee, folder / str(place), belongs_to="x", made_in={})
        for place, half in enumerate(halves)
    ]


def resumed(orders, saved):
    packed = sides(orders)
    for side, path in zip(packed, saved, strict=True):
        load_checkpoint(side.trainee, path, belongs_to="x", made_in={})
    return packed


def test_a_resume_within_the_same_packing_is_bit_identical(in_step, tmp_path):
    whole = sides(in_step)
    train_together(whole)
    again = resumed(in_step, interrupted(in_step, tmp_path, after=3))
    train_together(again)
    assert_same(again, whole, 0)


def test_a_resume_in_another_slot_or_alone_is_the_same_but_for_rounding(in_step, tmp_path):
    whole = sides(in_step)
    train_together(whole)
    saved = interrupted(in_step, tmp_path, after=3)
    moved = resumed(in_step, saved)
    train_together(moved[::-1])
    assert_same(moved, whole, TOLERANCE[False])
    alone = [train_alone(side) for side in resumed(in_step, saved)]
    assert_same(alone, whole, TOLERANCE[False])
