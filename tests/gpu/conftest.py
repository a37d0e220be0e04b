"""What needs a GPU: `pytest -m gpu tests/gpu`. Every test here is marked and skipped without."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def full_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5's sizes with random weights."""
    from worker.demo.tiny_base_model import make_base_model

    return make_base_model(tmp_path_factory.mktemp("full") / "model", size="full")
