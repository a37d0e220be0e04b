"""The training of the drawing model, in small."""

import contextlib
import random

import pytest
import torch
from torch import nn

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
from worker.demo.scenes import COLOURS, SHAPES, random_scene


def test_the_faster_way_back_through_a_norm_leads_to_the_same_place():
    torch.manual_seed(0)
    slow, images = nn.GroupNorm(4, 16), torch.randn(3, 16, 8, 8) * 2 + 1
    nn.init.normal_(slow.weight)
    towards = torch.randn(3, 16, 8, 8)
    gradients = []
    for norm, dtype in ((slow.double(), torch.float64), (slow.float(), torch.bfloat16)):
        if dtype == torch.bfloat16:
            assert isinstance(with_fast_norms(norm), FastGroupNorm)
        norm.zero_grad()
        values = images.to(dtype).requires_grad_()
        norm(values).backward(towards.to(dtype))
        gradients.append([values.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    for exact, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast.double(), exact.double(), rtol=0.03, atol=0.03)


def test_the_parts_fit_each_other_and_into_12_megabytes():
    words = tokenizer()
    with torch.device("meta"):
        parts = (autoencoder(), text_encoder(words), unet())
    weights = sum(weight.numel() for part in parts for weight in part.parameters())
    assert 2 * weights < 11.8e6
    vae, text, painter = parts
    assert painter.config.in_channels == vae.config.latent_channels == LATENT_CHANNELS
    assert painter.config.cross_attention_dim == text.config.hidden_size
    assert painter.config.sample_size == LATENT_SIDE


@pytest.mark.parametrize("word", [*SHAPES, *COLOURS, "background", "striped", "hatched"])
def test_each_word_that_matters_is_one_token(word):
    assert len(tokenizer()(word).input_ids) == 3


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
    return Course({"layer": nn.Linear(4, 4)}, Schedule(0.1, steps, warmup=2), folder / "state.pt")


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
