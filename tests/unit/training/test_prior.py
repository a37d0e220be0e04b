"""Prior preservation: the loss of diffusers' DreamBooth script, class pictures sent or drawn."""

from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from PIL import Image

from tests.unit.training.builders import (
    build,
    command,
    digests,
    largest_difference,
    last_checkpoint,
    read_class,
    read_usable,
    run,
    weights_of,
)
from tests.unit.training.reference_loop import (
    reference_scheduler,
    reference_step,
    reference_unet,
)
from tests.unit.training.test_parity import RULES, advance, ours, told_by_the_script
from tests.unit.training.test_whole_jobs import INTRICATE
from worker.contract.errors import ErrorCode, JobError
from worker.contract.manifest import Manifest
from worker.contract.parameters import TrainingParameters
from worker.contract.pipe import FinishedEvent, StoppedEvent
from worker.training.base_model import BaseModelShelf, load_base_model
from worker.training.device import arithmetic_for
from worker.training.drawing import Brush, pipeline_for
from worker.training.families.known import FAMILIES
from worker.training.plan import make_plan
from worker.training.prior import class_files
from worker.training.sampler import Companions, derived_seed, draw, step_samples

CLASS = {"with_prior_preservation": True, "class_prompt": "a shape", "prior_loss_weight": 0.5}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_steps_of_the_sampler(mocker):
    mocker.patch("worker.training.drawing.STEPS", 3)


def job(model, pictures, folder, *, family="sd1", **more):
    """Three pictures, and two of the class that came with the message."""
    return command(
        model,
        pictures[:3],
        folder,
        family=family,
        class_pictures=pictures[3:5],
        **{**CLASS, **more},
    )


def by_the_script(order):
    """The weights that diffusers' script for DreamBooth comes to with our random numbers."""
    model, trainee, lesson = build(order)
    rules, location = order.parameters, order.base_model.location
    usable = [*read_usable(order), *read_class(order)]
    unet, weights = reference_unet(location, rules, weights_of(trainee))
    optimizer = torch.optim.AdamW(
        weights.values(), lr=rules.learning_rate, weight_decay=1e-2, eps=rules.adam_epsilon
    )
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=5)
    ddpm = reference_scheduler(location)
    for step in range(5):
        [batch] = step_samples(
            lesson.plan, order.seed, step, lesson.trained, lesson.prior.companions
        )
        assert [sample.picture < 3 for sample in batch] == [True] * (len(batch) // 2) + [False] * (
            len(batch) // 2
        )
        draws = [
            draw(
                sample,
                seed=order.seed,
                latent_shape=lesson.dataset.buckets[0].latent_shape,
                timesteps=1000,
                flip=False,
                caption_dropout_rate=0,
            )
            for sample in batch
        ]
        chosen = [usable[sample.picture] for sample in batch]
        pixels = torch.stack([pixels for _, pixels in chosen])
        told = told_by_the_script(model, [picture for picture, _ in chosen], rules.resolution)
        reference_step(
            *(model, unet, pixels, told, draws, optimizer, scheduler, ddpm),
            prediction_type=lesson.prediction_type,
            prior_loss_weight=rules.prior_loss_weight,
        )
    return {name: weight.detach() for name, weight in weights.items()}


@pytest.mark.parametrize(("family", "batch"), [("sd1", 1), ("sd1", 2), ("sd2", 1), ("sdxl", 2)])
def test_five_steps_give_the_weights_of_diffusers_script_for_dreambooth(
    tiny_families, pictures, tmp_path, family, batch
):
    order = job(
        tiny_families[family],
        pictures,
        tmp_path,
        family=family,
        train_batch_size=batch,
        adam_epsilon=1e-4,
        **RULES,
    )
    start, trained = ours(order)
    assert largest_difference(start, trained) > 1e-3
    assert largest_difference(trained, by_the_script(order)) < 1e-6


def test_accumulation_gives_what_one_batch_gives(tiny_base_model, pictures, tmp_path):
    trained = []
    for batch, accumulation in ((2, 1), (1, 2)):
        order = job(
            tiny_base_model,
            pictures,
            tmp_path,
            **{**RULES, "adam_epsilon": 1e-4},
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        _, trainee, lesson = build(order, double=True)
        advance(trainee, lesson)
        trained.append(weights_of(trainee))
    assert largest_difference(*trained) < 1e-6


def test_a_smaller_micro_batch_passes_a_picture_and_its_companion_by_themselves(
    tiny_base_model, pictures, tmp_path
):
    order = job(tiny_base_model, pictures, tmp_path, **{**RULES, "adam_epsilon": 1e-4})
    trained = []
    for smaller in (False, True):
        _, trainee, lesson = build(order, double=True)
        assert lesson.plan.micro_batch == 2
        if smaller:
            lesson.plan = lesson.plan.smaller()
            assert lesson.plan.accumulation == 2
        advance(trainee, lesson)
        trained.append(weights_of(trainee))
    assert largest_difference(*trained) < 1e-6


@pytest.mark.parametrize(("pictures", "of_class", "batch"), [(5, 3, 2), (2, 7, 1), (4, 4, 4)])
def test_every_picture_of_the_class_is_shown_once_in_a_pass_of_its_own(pictures, of_class, batch):
    rules = TrainingParameters(train_batch_size=batch, num_train_epochs=21, **CLASS)
    plan = make_plan(rules, pictures, memory=FAMILIES["sd1"].memory, free_bytes=0)
    beside = Companions(range(100, 100 + of_class), lambda picture: 0)
    companions, places = [], set()
    for step in range(plan.total_steps):
        samples = [s for some in step_samples(plan, 1, step, None, beside) for s in some]
        of_step = [s for s in samples if s.picture >= 100]
        assert len(of_step) * 2 == len(samples)
        companions += [s.picture for s in of_step]
        places |= {(s.step, s.position) for s in samples}
    assert len(places) == 2 * len(companions)  # each has random numbers of its own
    for first in range(0, len(companions) // of_class * of_class, of_class):
        assert len(set(companions[first : first + of_class])) == of_class
    passes = Counter(tuple(companions[i : i + of_class]) for i in range(0, 6 * of_class, of_class))
    assert len(passes) > 1


def test_without_prior_preservation_samples_are_as_they_were():
    rules = TrainingParameters(train_batch_size=2)
    plan = make_plan(rules, 5, memory=FAMILIES["sd1"].memory, free_bytes=0)
    beside = Companions(range(5, 8), lambda picture: 0)
    for step in range(6):
        plain = [s for some in step_samples(plan, 1, step) for s in some]
        paired = [s for some in step_samples(plan, 1, step, None, beside) for s in some]
        assert [s for s in paired if s.picture < 5] == plain


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_base_draws_the_class_from_the_seed_and_the_prompt(
    tiny_families, pictures, tmp_path, family
):
    order = command(
        tiny_families[family], pictures[:2], tmp_path, family=family, num_class_images=2, **CLASS
    )
    model = load_base_model(order.base_model, arithmetic_for("no", CPU), allow_hub=False)
    found = []
    for _ in range(2):
        drawn = []
        for file in class_files(order, model, lambda: None):
            assert (file.caption, file.source) == ("a shape", f"class/{len(drawn):04d}.png")
            with Image.open(file.path) as image:
                drawn.append(numpy.asarray(image, dtype=int))
        found.append(drawn)
    assert all(numpy.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert numpy.abs(found[0][0] - found[0][1]).max() > 20
    if family == "sd1":
        plain = StableDiffusionPipeline.from_pretrained(tiny_families[family])
        plain.set_progress_bar_config(disable=True)
        plain.scheduler = pipeline_for(Brush(model, "epsilon", 64)).scheduler
        seed = derived_seed(order.seed, "class picture", 0)
        wanted = plain(
            "a shape",
            height=64,
            width=64,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert numpy.abs(found[0][0] - numpy.asarray(wanted, dtype=int)).max() <= 1
    assert not list(Path(order.output_dir).iterdir())


@pytest.mark.parametrize("sent", [True, False])
def test_a_job_stopped_in_the_middle_ends_bit_identical(tiny_base_model, pictures, tmp_path, sent):
    rules = {
        **INTRICATE,
        **CLASS,
        "aspect_ratio_buckets": True,
        "random_flip": True,
        "caption_dropout_rate": 0.3,
        "validation_split": 0.3,
    }
    rules |= {} if sent else {"num_class_images": 3}

    def order(name, **more):
        of_class = pictures[4:6] if sent else ()
        return command(
            tiny_base_model, pictures[:4], tmp_path / name, class_pictures=of_class, **rules, **more
        )

    shelf = BaseModelShelf()
    whole, _ = run(order("whole"), shelf)
    assert isinstance(whole, FinishedEvent)
    stopped, events = run(order("stopped"), shelf, stop_after=3)
    assert isinstance(stopped, StoppedEvent)
    again, _ = run(order("again", resume_from=last_checkpoint(events)), shelf)
    assert again.metadata["resumed_at_step"] == 3
    assert again.metadata["resumed_exactly"]
    assert digests(again) == digests(whole)


def test_what_was_done_is_in_the_manifest_and_in_the_webhook(tiny_base_model, pictures, tmp_path):
    ended, _ = run(command(tiny_base_model, pictures[:2], tmp_path, num_class_images=2, **CLASS))
    folder = tmp_path / "out"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert manifest.class_pictures_made
    assert [row.source for row in manifest.class_pictures] == ["class/0000.png", "class/0001.png"]
    assert len({row.sha256 for row in manifest.class_pictures}) == 2
    assert len(manifest.inputs) == len(manifest.dataset) == 2
    assert ended.metadata["class_pictures"]["used"] == 2
    assert ended.metadata["class_pictures"]["made"] is True
    assert {file.name for file in ended.files} == {*manifest.files, "manifest.json"}
    page = (folder / "report.html").read_text()
    assert "2 pictures drawn by the base model" in page
    assert "trained on 2 pictures for 6 steps" in page
    without, _ = run(command(tiny_base_model, pictures[:2], tmp_path / "without"))
    assert "class_pictures" not in without.metadata
    assert "Pictures of the class" not in (tmp_path / "without/out/report.html").read_text()


def test_it_changes_what_is_learned(tiny_base_model, pictures, tmp_path):
    found = []
    for number, rules in enumerate(
        ({}, {**CLASS, "num_class_images": 2}, {**CLASS, "num_class_images": 3})
    ):
        ended, _ = run(command(tiny_base_model, pictures[:2], tmp_path / str(number), **rules))
        found.append(str(digests(ended)))
    assert len(set(found)) == 3


def test_a_damaged_picture_of_the_class_is_left_out_and_none_left_is_an_error(
    tiny_base_model, pictures, tmp_path
):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    order = command(
        tiny_base_model, pictures[:2], tmp_path / "a", class_pictures=[bad, pictures[3]], **CLASS
    )
    ended, _ = run(order)
    assert ended.metadata["class_pictures"]["left_out"] == 1
    order = command(tiny_base_model, pictures[:2], tmp_path / "b", class_pictures=[bad], **CLASS)
    with pytest.raises(JobError, match=r"1 of 1 pictures cannot be used: bad\.png") as caught:
        run(order)
    assert caught.value.code is ErrorCode.INVALID_IMAGE


def test_who_wants_to_stop_is_heard_while_the_class_is_drawn(tiny_base_model, pictures, tmp_path):
    from worker.training.job import run_job

    asked = []

    def stop_at_the_eighth():
        asked.append(1)
        return "drain" if len(asked) >= 8 else None

    ended = run_job(
        command(tiny_base_model, pictures[:2], tmp_path, **CLASS),
        BaseModelShelf(),
        CPU,
        report=lambda event: None,
        should_stop=stop_at_the_eighth,
    )
    assert ended == StoppedEvent(reason="drain", step=0)
    assert len(asked) == 8
