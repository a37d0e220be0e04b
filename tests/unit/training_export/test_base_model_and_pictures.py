"""The small base model and the drawn pictures are good enough to train on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.fixtures.drawn_pictures import draw_pictures
from worker.contract.base_model import load_catalogue
from worker.demo.tiny_base_model import make_base_model


@pytest.fixture(scope="module")
def pipeline(tiny_base_model: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_base_model, local_files_only=True)


def as_tensor(path: Path, side: int = 64) -> torch.Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB").resize((side, side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1


def test_equal_seeds_give_equal_bytes_and_the_callers_randomness_is_untouched(
    tmp_path: Path,
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = make_base_model(tmp_path / "a", seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = make_base_model(tmp_path / "b", seed=1)
    other = make_base_model(tmp_path / "c", seed=2)

    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    weights = [name for name in names if name.suffix == ".safetensors"]
    assert len(weights) == 3
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert all((first / name).read_bytes() != (other / name).read_bytes() for name in weights)


def test_distinct_prompts_have_distinct_tokens_and_77_of_them(
    pipeline: StableDiffusionPipeline,
) -> None:
    prompts = ["", "a", "a picture", "a picture of zyx", "hatched drawing of a circle", "né", "語"]
    prompts += [" ".join(["word"] * 200)]
    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True).input_ids
    assert pipeline.tokenizer.model_max_length == 77
    assert {len(ids) for ids in tokens} == {77}
    assert len({tuple(ids) for ids in tokens}) == len(prompts)
    assert max(max(ids) for ids in tokens) < pipeline.text_encoder.config.vocab_size

    with torch.no_grad():
        text = pipeline.text_encoder(torch.tensor(tokens)).last_hidden_state
    assert text.shape == (len(prompts), 77, pipeline.unet.config.cross_attention_dim)
    assert text.isfinite().all()
    assert text.flatten(1).unique(dim=0).shape[0] == len(prompts)


def test_latents_have_an_eighth_of_the_size_unit_spread_and_differ_by_picture(
    pipeline: StableDiffusionPipeline, pictures: list[Path]
) -> None:
    batch = torch.stack([as_tensor(path) for path in pictures])
    with torch.no_grad():
        posterior = pipeline.vae.encode(batch).latent_dist
    latents = posterior.mode() * pipeline.vae.config.scaling_factor
    assert latents.shape == (6, 4, 8, 8)
    assert 0.5 < latents.std() < 2
    assert latents.std(dim=0).mean() > 0.3
    assert (posterior.std * pipeline.vae.config.scaling_factor).max() < 0.2


def test_the_unet_has_attention_in_down_mid_and_up_blocks(
    pipeline: StableDiffusionPipeline,
) -> None:
    places = {
        name.split("_block")[0]
        for name, _ in pipeline.unet.named_modules()
        if name.endswith("attn2.to_out.0")
    }
    assert places == {"down", "mid", "up"}


def test_the_scheduler_is_that_of_stable_diffusion_1_5(pipeline: StableDiffusionPipeline) -> None:
    # Literals: alphas_cumprod of Stable Diffusion 1.5 at the first and the last timestep.
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert len(pipeline.scheduler.alphas_cumprod) == 1000
    assert pipeline.scheduler.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert pipeline.scheduler.alphas_cumprod[-1].item() == pytest.approx(0.004660, abs=1e-6)


def test_the_pipeline_draws_a_picture(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("a drawing", num_inference_steps=2, height=64, width=64, output_type="np")
    assert result.images.shape == (1, 64, 64, 3)
    assert np.isfinite(result.images).all()
    assert result.images.std() > 0.01


def test_the_catalogue_names_the_base_model(
    base_model_catalogue: Path, tiny_base_model: Path
) -> None:
    catalogue = load_catalogue(base_model_catalogue)
    assert {name: entry.location for name, entry in catalogue.items()} == {
        "tiny": str(tiny_base_model)
    }
    assert catalogue["tiny"].family == "sd1"


def test_pictures_are_of_mixed_formats_and_sizes_and_repeat(tmp_path: Path) -> None:
    first = draw_pictures(tmp_path / "a", 6)
    again = draw_pictures(tmp_path / "b", 6)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in first}) == 6
    opened = [Image.open(path) for path in first]
    assert {picture.format for picture in opened} == {"PNG", "JPEG"}
    assert len({picture.size for picture in opened}) > 2
    assert min(min(picture.size) for picture in opened) == 96
    captioned = [path for path in first if path.with_suffix(".txt").exists()]
    assert 0 < len(captioned) < 6
    assert draw_pictures(tmp_path / "c", 1, seed=1)[0].read_bytes() != first[0].read_bytes()
