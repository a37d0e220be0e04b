"""The training of the drawing model, in small."""

import contextlib
import copy
import random

import torch
from torch import nn

from worker.demo.drawing_base import load_drawing_model, sample
from worker.demo.from_scratch import autoencoder as autoencoder_stage
from worker.demo.from_scratch import painter, reader
from worker.demo.from_scratch.__main__ import main as from_scratch
from worker.demo.from_scratch.architecture import (
    LATENT_CHANNELS,
    LATENT_SIDE,
    autoencoder,
    text_encoder,
    tokenizer,
    unet,
)
from worker.demo.from_scratch.autoencoder import as_input, draw_pool, whiten
from worker.demo.from_scratch.captions import training_caption
from worker.demo.from_scratch.course import Course, Schedule
from worker.demo.from_scratch.group_norm import FastGroupNorm, with_fast_norms
from worker.demo.from_scratch.textures import random_texture
from worker.demo.scenes import COLOURS, SHAPES, caption_of, random_scene


def test_the_faster_way_back_through_a_norm_leads_to_the_same_place():
    torch.manual_seed(0)
    images, towards = torch.randn(3, 16, 8, 8) * 2 + 1, torch.randn(3, 16, 8, 8)
    exact = nn.GroupNorm(4, 16)
    nn.init.normal_(exact.weight)
    fast = with_fast_norms(copy.deepcopy(exact))
    assert isinstance(fast, FastGroupNorm)
    gradients = []
    for norm, dtype in ((exact.double(), torch.float64), (fast, torch.bfloat16)):
        values = images.to(dtype).requires_grad_()
        norm(values).backward(towards.to(dtype))
        gradients.append([values.grad, norm.weight.grad, norm.bias.grad])
    for wanted, found in zip(*gradients, strict=True):
        assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


def test_the_parts_fit_each_other_and_into_12_megabytes():
    words = tokenizer()
    with torch.device("meta"):
        parts = (autoencoder(), text_encoder(words), unet())
    weights = sum(weight.numel() for part in parts for weight in part.parameters())
    assert 2 * weights < 11.8e6
    vae, text, denoiser = parts
    assert denoiser.config.in_channels == vae.config.latent_channels == LATENT_CHANNELS
    assert denoiser.config.cross_attention_dim == text.config.hidden_size
    assert denoiser.config.sample_size == LATENT_SIDE


def test_words_that_matter_have_tokens_of_their_own():
    known = [*SHAPES, *COLOURS, "background", "striped", "hatched", "small", "large"]
    words = tokenizer()
    assert len({tuple(words(word).input_ids) for word in known}) == len(known)


def test_white_latents_are_decoded_as_before():
    torch.manual_seed(0)
    vae, pictures = autoencoder().eval(), as_input(draw_pool(8, seed=0))
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        whiten(vae, pictures)
        latents = vae.encode(pictures).latent_dist.mode()
        torch.testing.assert_close(vae.decode(latents).sample, before, rtol=1e-3, atol=1e-3)
    scaled = (latents * vae.config.scaling_factor).transpose(0, 1).flatten(1)
    torch.testing.assert_close(scaled.mean(1), torch.zeros(LATENT_CHANNELS), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(scaled), torch.eye(LATENT_CHANNELS), rtol=0, atol=1e-2)


def course(folder, steps=6):
    torch.manual_seed(0)
    return Course(
        {"layer": nn.Linear(4, 4)}, Schedule(0.1, steps, warmup=2), folder / "state.safetensors"
    )


def run(course, until=None):
    def loss_of(step):
        if step == until:
            raise KeyboardInterrupt
        draws = torch.Generator().manual_seed(step)
        return course.modules["layer"](torch.randn(3, 4, generator=draws)).square().mean()

    with contextlib.suppress(KeyboardInterrupt):
        course.run(loss_of, lambda _line: None, lambda: None)


def test_a_course_that_was_stopped_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.demo.from_scratch.course.CHECKPOINT_EVERY", 2)
    (tmp_path / "a").mkdir()
    whole = course(tmp_path / "a")
    run(whole)
    run(course(tmp_path), until=5)
    again = course(tmp_path)
    assert again.step == 4
    run(again)
    for name in ("modules", "averages"):
        ends = [getattr(c, name)["layer"].state_dict() for c in (whole, again)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_learning_rate_warms_up_and_ends_near_nothing():
    schedule = Schedule(peak=1.0, steps=100, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.02


def test_all_stages_end_with_a_pipeline_that_plain_diffusers_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder_stage, "PICTURES", 4)
    monkeypatch.setattr(autoencoder_stage, "WHITENED", 8)
    monkeypatch.setattr(reader, "STEPS", 2)
    for name, value in (("SCENES", 8), ("CHUNK", 8), ("BATCH", 2), ("CHECKED", 1), ("SHOWN", ())):
        monkeypatch.setattr(painter, name, value)
    steps = ["--autoencoder-steps", "2", "--painter-steps", "2"]
    monkeypatch.setattr("sys.argv", ["from_scratch", "--work", str(tmp_path), *steps])
    assert from_scratch() == 0
    pipeline = load_drawing_model(tmp_path / "model")
    assert sample(pipeline, ["a star"], seed=0, steps=2)[0].size == (128, 128)
    assert {"README.md", "LICENSE"} <= {path.name for path in (tmp_path / "model").iterdir()}


def test_the_reader_is_told_what_a_caption_says_and_no_more():
    rng = random.Random(1)
    for scene in (random_scene(rng) for _ in range(200)):
        everything = reader.said(scene, caption_of(scene, rng, left_out=0))
        named = [names[n] for n, names in zip(everything, reader.NAMES.values(), strict=True)]
        assert named[:3] == [scene.shape, scene.colour, scene.background]
        assert named[3] == ("" if scene.size == "medium" else scene.size)
        assert reader.said(scene, f"a {scene.shape}")[1:] == [0] * 5
        assert reader.said(scene, "") == [0] * 6


def test_captions_in_training_are_true_and_some_are_empty():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(500)]
    captions = [training_caption(scene, rng) for scene in scenes]
    assert 30 <= captions.count("") <= 70
    for scene, caption in zip(scenes, captions, strict=True):
        assert not caption or scene.shape in caption.split()


def test_textures_are_pictures_and_differ():
    drawn = {random_texture(random.Random(number)).tobytes() for number in range(20)}
    assert len(drawn) == 20
