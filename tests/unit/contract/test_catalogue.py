"""A job may only ask for the base models that the operator lists."""

from pathlib import Path

import pytest

from worker.contract.base_model import CatalogueError, load_catalogue
from worker.contract.base_model_choice import for_base_model
from worker.contract.parameters import TrainingParameters


def test_the_shipped_catalogue_is_valid():
    assert "stable-diffusion-v1-5" in load_catalogue(Path("config/base_models.toml"))


def test_a_folder_beside_the_catalogue_is_found(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "c.toml").write_text('[mine]\nlocation = "mine"\n')
    assert load_catalogue(tmp_path / "c.toml")["mine"].location == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no row"),
        ("[a", "cannot be read"),
        ('[a]\nfamily = "sd1"', r"row \[a\]"),
        ('[a]\nlocation = "x"\nfamily = "sd9"', r"row \[a\]"),
        ('[a]\nlocation = "x"\nresolution = 500', r"row \[a\]"),
        ("a = 3", r"row \[a\]"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_named_with_its_row(tmp_path, text, says):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(CatalogueError, match=says):
        load_catalogue(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("row", "resolution"),
    [
        ("", 512),
        ('family = "sd1"', 512),
        ('family = "sd2"', 768),
        ('family = "sd2"\nresolution = 512', 512),
        ('family = "sdxl"', 1024),
        ('family = "sdxl"\nresolution = 768', 768),
    ],
)
def test_a_job_that_says_no_resolution_has_that_of_its_base_model(tmp_path, row, resolution):
    (tmp_path / "c.toml").write_text(f'[mine]\nlocation = "x"\n{row}')
    base = load_catalogue(tmp_path / "c.toml")["mine"]
    assert for_base_model(TrainingParameters(rank=4), base) == TrainingParameters(
        rank=4, resolution=resolution
    )
    asked = TrainingParameters.model_validate({"resolution": 640})
    assert for_base_model(asked, base) is asked


def test_a_missing_catalogue_is_named(tmp_path):
    with pytest.raises(CatalogueError, match="does not exist"):
        load_catalogue(tmp_path / "none.toml")
