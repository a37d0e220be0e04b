"""DoRA in both files: diffusers' keys and metadata, and magnitudes as ComfyUI applies them."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel

from tests.unit.training_export.conftest import UnetMaker
from tests.unit.training_export.test_files import export, header, load_in_one_line
from tests.unit.training_export.test_verify import rewrite
from worker.contract.errors import JobError
from worker.contract.target_modules import TARGET_PRESETS
from worker.training.export import DIFFUSERS_FILE, KOHYA_FILE
from worker.training.verify import verify_adapter


def outputs(unet: UNet2DConditionModel) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return unet.eval()(
            torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, 32)
        ).sample


@pytest.mark.parametrize("targets", [*TARGET_PRESETS.values(), ("proj_in", "conv1", "to_q")])
def test_both_files_give_back_the_trained_adapter(
    targets: tuple[str, ...], trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet(rank=4, alpha=7, targets=targets, dora=True)
    difference = verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet)
    assert difference < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_base_in_half_precision_too(
    dtype: torch.dtype, trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet, fresh = trained_unet(dtype=dtype, dora=True), fresh_unet(dtype)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=lambda: fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_one_line_of_plain_diffusers_loads_the_file_with_its_magnitudes(
    trained_unet: UnetMaker, tiny_base_model: Path, tmp_path: Path
) -> None:
    unet = trained_unet(dora=True)
    file, _ = export(unet, tmp_path)
    magnitudes = [key for key in safetensors.torch.load_file(file) if "magnitude" in key]
    assert len(magnitudes) == 32
    assert all(
        key.startswith("unet.") and key.endswith(".lora_magnitude_vector") for key in magnitudes
    )
    assert json.loads(header(file)["lora_adapter_metadata"])["unet.use_dora"] is True
    pipeline = load_in_one_line(tiny_base_model, tmp_path / DIFFUSERS_FILE)
    assert torch.equal(outputs(pipeline.unet), outputs(unet))


def test_comfyui_and_forge_merge_the_weights_that_were_trained(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    """Their `weight_decompose` divides by the norms of the base's rows."""
    unet = trained_unet(rank=4, alpha=7, dora=True)
    _, path = export(unet, tmp_path)
    file, fresh = safetensors.torch.load_file(path), fresh_unet()
    names = {key.split(".")[0] for key in file}
    assert len(names) == 32
    for name, module in fresh.named_modules():
        kohya = "lora_unet_" + name.replace(".", "_")
        if kohya not in names:
            continue
        weight = module.weight.data
        down, up = file[f"{kohya}.lora_down.weight"], file[f"{kohya}.lora_up.weight"]
        scale = file[f"{kohya}.dora_scale"]
        assert scale.shape == (weight.shape[0], 1)  # by this it is known to be of the rows
        tuned = weight + file[f"{kohya}.alpha"] / down.shape[0] * (up @ down)
        norm = weight.norm(dim=1, keepdim=True) + torch.finfo(weight.dtype).eps
        module.weight.data = tuned * (scale / norm)
    expected = outputs(unet)
    assert (outputs(fresh) - expected).abs().max() < 1e-4 * expected.abs().max()


def _other_magnitude(tensors: dict[str, torch.Tensor], _header: dict[str, str]) -> None:
    key = next(key for key in tensors if "magnitude" in key or "dora_scale" in key)
    tensors[key] *= 1.5


def _no_magnitudes(tensors: dict[str, torch.Tensor], _header: dict[str, str]) -> None:
    for key in [key for key in tensors if "magnitude" in key or "dora_scale" in key]:
        del tensors[key]


@pytest.mark.parametrize("name", [DIFFUSERS_FILE, KOHYA_FILE])
@pytest.mark.parametrize("change", [_other_magnitude, _no_magnitudes])
def test_a_file_with_other_magnitudes_is_refused(
    name: str, change: object, trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet(dora=True)
    files = export(unet, tmp_path)
    rewrite(tmp_path / name, change)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=name):
        verify_adapter(unet, files=files, fresh_unet=fresh_unet)


def test_a_truncated_kohya_file_does_not_load_back(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet(dora=True)
    files = export(unet, tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-1000])
    with pytest.raises(JobError, match=f"The exported file {KOHYA_FILE} does not load back"):
        verify_adapter(unet, files=files, fresh_unet=fresh_unet)
