"""Each family of base models trains as its own script does, resumes, and comes back in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft.tuners.lora import LoraLayer
from transformers import T5Config, T5EncoderModel

from tests.unit.training import test_parity as parity
from tests.unit.training.builders import (
    CPU,
    build,
    command,
    digests,
    largest_difference,
    last_checkpoint,
    read_usable,
    run,
)
from tests.unit.training.test_whole_jobs import INTRICATE
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import FinishedEvent, StoppedEvent
from worker.demo.tiny_families import make_family
from worker.training.adapter import remove_adapter
from worker.training.base_model import BaseModelShelf, load_base_model
from worker.training.conditioning import encode_captions, text_bytes
from worker.training.device import arithmetic_for
from worker.training.evaluate import fixed_loss
from worker.training.export import DIFFUSERS_FILE, KOHYA_FILE
from worker.training.step import optimizer_step

FAMILIES = ["sd1", "sd2", "sdxl", "sd3"]
NEWER = FAMILIES[1:]
PIPELINES = {
    "sd1": StableDiffusionPipeline,
    "sd2": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}

#: What a pipeline calls what is trained.
DENOISER = {"sd3": "transformer"}


def job(tiny_families, family, pictures, folder, **rules):
    return command(tiny_families[family], pictures, folder, family=family, **rules)


def plain_pipeline(folder: Path, family: str):
    pipeline = PIPELINES[family].from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", NEWER)
def test_five_steps_give_the_weights_of_the_family_s_script(
    tiny_families, pictures, tmp_path, family, batch
):
    order = job(
        tiny_families,
        family,
        pictures[:4],
        tmp_path,
        **parity.RULES,
        train_batch_size=batch,
        adam_epsilon=1e-4,
    )
    start, trained = parity.ours(order)
    assert largest_difference(start, trained) > 1e-3
    assert largest_difference(trained, parity.reference(order)) < 1e-6


@pytest.mark.parametrize("family", NEWER)
def test_in_double_precision_they_differ_by_far_less_than_a_step(
    tiny_families, pictures, tmp_path, family
):
    order = job(tiny_families, family, pictures[:4], tmp_path, **parity.RULES, train_batch_size=2)
    _, trained = parity.ours(order, double=True)
    assert largest_difference(trained, parity.reference(order, double=True)) < 5e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_encoded_as_the_family_s_pipeline_encodes_prompts(
    tiny_families, pictures, tmp_path, family
):
    order = job(tiny_families, family, pictures, tmp_path)
    _, _, lesson = build(order)
    data, pipeline = lesson.dataset, plain_pipeline(tiny_families[family], family)
    for picture, image in enumerate(order.images):
        others = {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
        encoded = pipeline.encode_prompt(
            image.caption,
            device=CPU,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **others,
        )
        place = data.captions[picture]
        states = data.embeddings.states[place]
        assert torch.equal(states[:77], encoded[0][0][:77])
        # T5 sums in another order where its weights lie elsewhere.
        assert torch.allclose(states[77:], encoded[0][0][77:], atol=1e-4)
        assert len(states) == (77 + 256 if family == "sd3" else 77)
        if family in ("sdxl", "sd3"):
            assert torch.equal(data.embeddings.pooled[place], encoded[2][0])
        else:
            assert data.embeddings.pooled is None
        assert (data.buckets[0].time_ids is not None) == (family == "sdxl")


def test_xl_is_told_original_size_corner_and_target_size_of_each_picture_and_its_mirror_image(
    tiny_families, pictures, tmp_path
):
    order = job(tiny_families, "sdxl", pictures, tmp_path, random_flip=True)
    _, _, lesson = build(order)
    sizes = [(picture.height, picture.width) for picture, _ in read_usable(order)]
    found = lesson.dataset.buckets[0].time_ids
    assert found.shape == (len(pictures), 2, 6)
    assert found.dtype == torch.float32
    assert torch.equal(found[:, 0], found[:, 1])
    assert len(set(sizes)) > 2
    for (height, width), ids in zip(sizes, found[:, 0].tolist(), strict=True):
        assert ids[:2] == [height, width]
        assert ids[4:] == [64, 64]
        scale = 64 / min(height, width)
        corner = [(height * scale - 64) / 2, (width * scale - 64) / 2]
        assert ids[2:4] == pytest.approx(corner, abs=1)
        assert min(ids[2:4]) == 0


def test_each_picture_of_a_batch_keeps_its_own_caption_and_sizes(tiny_families, pictures, tmp_path):
    """A batch of four gives what four steps of accumulation give, time ids and pooled text too."""
    trained = [
        parity.accumulated(
            tiny_families["sdxl"], pictures, tmp_path, *sizes, double=True, family="sdxl"
        )
        for sizes in ((4, 1), (1, 4))
    ]
    assert largest_difference(*trained) < 1e-6


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("family", NEWER)
def test_a_job_stopped_in_the_middle_ends_bit_identical(
    tiny_families, pictures, tmp_path, family, precision
):
    rules = {
        **INTRICATE,
        "mixed_precision": precision,
        "caption_dropout_rate": 0.3,
        "random_flip": True,
    }
    shelf = BaseModelShelf()
    whole, _ = run(job(tiny_families, family, pictures, tmp_path / "whole", **rules), shelf)
    assert isinstance(whole, FinishedEvent)
    stopped, events = run(
        job(tiny_families, family, pictures, tmp_path / "stopped", **rules), shelf, stop_after=3
    )
    assert isinstance(stopped, StoppedEvent)
    rules["resume_from"] = last_checkpoint(events)
    again, _ = run(job(tiny_families, family, pictures, tmp_path / "resumed", **rules), shelf)
    assert again.metadata["resumed_at_step"] == 3
    assert again.metadata["resumed_exactly"]
    assert digests(again) == digests(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_pipeline_loads_either_file_and_draws_what_the_trained_one_draws(
    tiny_families, pictures, tmp_path, family
):
    order = job(
        tiny_families, family, pictures, tmp_path, target_modules="attn-mlp", learning_rate=1e-2
    )
    ended, _ = run(order)
    assert isinstance(ended, FinishedEvent)
    trained = plain_pipeline(tiny_families[family], family)
    before = drawn_by(trained)
    unet, denoiser = in_memory(order), getattr(trained, DENOISER.get(family, "unet"))
    denoiser.add_adapter(unet.peft_config["default"])
    denoiser.load_state_dict(unet.state_dict())
    denoiser.eval()
    expected = drawn_by(trained)
    assert not torch.equal(expected, before)
    # Of 3's two files diffusers reads its own.
    for name in (DIFFUSERS_FILE, KOHYA_FILE)[: 1 if family == "sd3" else 2]:
        reloaded = plain_pipeline(tiny_families[family], family)
        reloaded.load_lora_weights(str(Path(order.output_dir) / name))
        denoiser = getattr(reloaded, DENOISER.get(family, "unet"))
        layers = [part for part in denoiser.modules() if isinstance(part, LoraLayer)]
        assert {scale for part in layers for scale in part.scaling.values()} == {2.0}
        assert torch.equal(drawn_by(reloaded), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_parts_draw_what_a_plain_pipeline_draws(tiny_families, pictures, tmp_path, family):
    model, _, _ = build(job(tiny_families, family, pictures, tmp_path))
    remove_adapter(model.unet)
    plain = plain_pipeline(tiny_families[family], family)
    painter = model.family.painter(model.vae, model.unet, plain.scheduler)
    painter.set_progress_bar_config(disable=True)
    prompt, negative = (
        model.family.encode(model.text_encoders, text) for text in ("a red circle", "blue")
    )
    drawn = drawn_by(painter, **model.family.painter_prompts(prompt, negative))
    expected = drawn_by(plain, prompt="a red circle", negative_prompt="blue")
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert not torch.allclose(drawn, drawn_by(plain, prompt="a line"), atol=1e-2)


def in_memory(order):
    """The UNet as the same job leaves it, with PEFT's adapter on."""
    model, trainee, lesson = build(order)
    for _ in range(lesson.plan.total_steps):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    return model.unet


def drawn_by(pipeline, **prompts) -> torch.Tensor:
    return torch.from_numpy(
        pipeline(
            **(prompts or {"prompt": "a red circle"}),
            num_inference_steps=2,
            height=64,
            width=64,
            output_type="np",
            generator=torch.Generator().manual_seed(3),
        ).images
    )


@pytest.mark.parametrize("family", NEWER)
def test_the_loss_at_fixed_timesteps_falls(tiny_families, pictures, tmp_path, family):
    order = job(tiny_families, family, pictures, tmp_path, max_train_steps=60, learning_rate=1e-3)
    _, trainee, lesson = build(order)
    before = fixed_loss(trainee, lesson)
    assert fixed_loss(trainee, lesson) == before
    for _ in range(60):
        optimizer_step(trainee, lesson)
        trainee.step += 1
    assert fixed_loss(trainee, lesson) < before * 0.985


@pytest.mark.parametrize("said", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_another_family_is_refused_with_both_names(tiny_families, family, said):
    entry = BaseModelEntry(name="mine", location=str(tiny_families[family]), family=said)
    if family == said:
        model = load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)
        assert model.family.name == family
        return
    with pytest.raises(JobError, match="The base model mine is of the family") as caught:
        load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)
    assert caught.value.code is ErrorCode.BASE_MODEL_UNAVAILABLE
    assert f"{family!r}, and its row in the catalogue says {said!r}" in caught.value.message
    assert str(tiny_families[family]) not in caught.value.message


@pytest.mark.parametrize(
    ("file", "name", "value", "says"),
    [
        ("text_encoder_2/config.json", "projection_dim", 40, "cannot be loaded"),
        ("unet/config.json", "addition_embed_type", "image", "cannot be loaded"),
    ],
)
def test_an_xl_whose_parts_do_not_fit_is_refused(tiny_families, tmp_path, file, name, value, says):
    folder = shutil.copytree(tiny_families["sdxl"], tmp_path / "broken")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {name: value}))
    entry = BaseModelEntry(name="mine", location=str(folder), family="sdxl")
    with pytest.raises(JobError, match=says) as caught:
        load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)
    assert caught.value.code is ErrorCode.BASE_MODEL_UNAVAILABLE


def test_3_trains_without_t5_beside_pictures_of_the_class_and_draws_on_the_way(
    tmp_path, pictures, mocker
):
    mocker.patch("worker.training.drawing.STEPS", 2)
    folder = make_family(tmp_path / "base", "sd3", with_t5=False)
    order = command(
        folder,
        pictures[:2],
        tmp_path,
        family="sd3",
        with_prior_preservation=True,
        class_prompt="a shape",
        num_class_images=2,
        validation_prompts=["a red circle"],
        num_validation_images=1,
        preview_points=1,
        train_batch_size=2,
    )
    ended, _ = run(order)
    assert isinstance(ended, FinishedEvent)
    assert ended.metadata["absent_text_encoders"] == ["text_encoder_3"]
    assert ended.metadata["class_pictures"]["used"] == 2
    [preview] = ended.metadata["previews"]
    assert len(preview["along"]) == 1
    _, _, lesson = build(order)
    states = lesson.dataset.embeddings.states
    assert states.shape[1:] == (77 + 256, 112)
    assert not states[:, 77:].any()
    # diffusers draws without T5 as well, if it is told to.
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    encoded = pipeline.encode_prompt(
        "shape 0", prompt_2=None, prompt_3=None, device=CPU, do_classifier_free_guidance=False
    )
    assert torch.equal(states[lesson.dataset.captions[0]], encoded[0][0])


def test_a_t5_of_another_3_is_refused(tiny_families, tmp_path):
    folder = shutil.copytree(tiny_families["sd3"], tmp_path / "mixed")
    config = json.loads((folder / "text_encoder_3/config.json").read_text())
    shutil.rmtree(folder / "text_encoder_3")
    narrow = T5Config(**{**config, "d_model": 96})
    T5EncoderModel(narrow).save_pretrained(folder / "text_encoder_3")
    entry = BaseModelEntry(name="mine", location=str(folder), family="sd3")
    with pytest.raises(JobError, match="its transformer and its text encoders are not made"):
        load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)


def test_text_encoders_of_another_xl_are_refused(tiny_families, tmp_path):
    folder = shutil.copytree(tiny_families["sdxl"], tmp_path / "mixed")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(tiny_families["sd2"] / "text_encoder", folder / "text_encoder")
    entry = BaseModelEntry(name="mine", location=str(folder), family="sdxl")
    with pytest.raises(JobError, match="are not made for each other"):
        load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_text_takes_is_what_encoding_it_gives(tiny_families, family):
    entry = BaseModelEntry(name="tiny", location=str(tiny_families[family]), family=family)
    model = load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)
    found = encode_captions(model.family, model.text_encoders, ["a fox"])
    kept = [part for part in (found.states, found.pooled) if part is not None]
    assert len(found) * text_bytes(model.family, model.unet.config) == sum(
        part.numel() * part.element_size() for part in kept
    )
