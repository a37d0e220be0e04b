"""Previews on a GPU: they repeat bit for bit, whatever the precision, and cost no bit elsewhere."""

import numpy
import pytest
from PIL import Image

from tests.gpu.test_training import job
from tests.unit.training.builders import command, digests
from worker.training.export import DIFFUSERS_FILE


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_previews_repeat_bit_for_bit_and_change_no_adapter(
    tiny_base_model, pictures, tmp_path, gpu, launch, precision
):
    def trained(name, prompts):
        order = command(
            tiny_base_model,
            pictures[:2],
            tmp_path / name,
            mixed_precision=precision,
            max_train_steps=8,
            validation_prompts=prompts,
            num_validation_images=1,
        ).model_copy(update={"launch": launch})
        return job(order, gpu)[0]

    first, second = (trained(name, ["a circle", "a square"]) for name in ("a", "b"))
    without = trained("c", [])
    assert digests(first) == digests(second)
    assert digests(first)[DIFFUSERS_FILE] == digests(without)[DIFFUSERS_FILE]
    for number in (0, 1):
        name = f"previews/after_{number:02d}.png"
        paths = [tmp_path / run / "out" / name for run in ("a", "b")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with Image.open(paths[0]) as image:
            assert numpy.asarray(image).std() > 1
