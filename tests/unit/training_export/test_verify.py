"""Loading back finds every way in which a file can be another adapter than the trained one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tests.unit.training_export.conftest import UnetMaker
from tests.unit.training_export.test_files import export
from worker.contract.errors import ErrorCode, JobError
from worker.contract.target_modules import TARGET_PRESETS
from worker.training import reading_back
from worker.training.adapter_state import kohya_part, layers_of, unet_names
from worker.training.adapter_weights import ADAPTER
from worker.training.device import compute_repeatably
from worker.training.export import DIFFUSERS_FILE, KOHYA_FILE
from worker.training.verify import verify_adapter

Tensors = dict[str, torch.Tensor]


def rewrite(file: Path, change: Callable[[Tensors, dict[str, str]], None]) -> None:
    """Change a file's tensors and header in place."""
    with safetensors.safe_open(file, "pt") as opened:
        header = dict(opened.metadata())
    tensors = safetensors.torch.load_file(file)
    change(tensors, header)
    safetensors.torch.save_file(tensors, file, metadata=header)


@pytest.mark.parametrize("preset", ["attn", "attn-mlp"])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (4, 7), (16, 32), (4, 0.5), (3, 0.1)])
def test_both_files_give_back_the_trained_adapter(
    preset: str,
    rank: int,
    alpha: float,
    trained_unet: UnetMaker,
    fresh_unet: UnetMaker,
    tmp_path: Path,
) -> None:
    unet = trained_unet(rank=rank, alpha=alpha, targets=TARGET_PRESETS[preset])
    assert verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet) == 0


@pytest.mark.parametrize("layer", ["proj_in", "conv1", "time_emb_proj", "conv_shortcut"])
def test_layers_outside_the_attention_come_back_too(
    layer: str, trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet(rank=2, alpha=3, targets=(layer,))
    assert verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_does_not_round_the_comparison(
    dtype: torch.dtype, trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet(dtype=dtype)
    fresh = fresh_unet(dtype)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=lambda: fresh) == 0

    after = fresh.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {value.dtype for value in after.values()} == {dtype}


def test_the_modules_are_in_their_modes_after_and_the_base_is_made_once(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    unet.mid_block.eval()
    before = [part.training for part in unet.modules()]
    assert len(set(before)) == 2
    made = []

    def fresh() -> object:
        made.append(fresh_unet())
        return made[-1]

    verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh)  # type: ignore[arg-type]
    assert [part.training for part in unet.modules()] == before
    assert len(made) == 1


def test_a_base_in_another_memory_format_fails_no_job(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    files = export(unet, tmp_path)
    difference = verify_adapter(
        unet, files=files, fresh_unet=lambda: fresh_unet().to(memory_format=torch.channels_last)
    )
    assert difference < 1e-4


def test_outputs_are_compared_without_tf32_and_training_has_it_again_after(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    """Products in TF32 differ by more than what is taken for rounding in full precision."""
    unet, fresh, seen = trained_unet(), fresh_unet(), []

    def note(*_: object) -> None:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    for model in (unet, fresh):
        model.register_forward_pre_hook(note)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        compute_repeatably()
        as_trained = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=lambda: fresh)
        after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert after == as_trained == ("high", True)
    assert seen == 3 * [("highest", False)]


def _alpha_is_the_rank(tensors: Tensors, _header: dict[str, str]) -> None:
    for key in tensors:
        if key.endswith(".alpha"):
            tensors[key] = torch.tensor(16.0)


def _no_metadata(_tensors: Tensors, header: dict[str, str]) -> None:
    del header["lora_adapter_metadata"]


def _zero(tensors: Tensors, _header: dict[str, str]) -> None:
    for key, value in tensors.items():
        if "lora_B" in key or "lora_up" in key:
            value.zero_()


def _one_bit(tensors: Tensors, _header: dict[str, str]) -> None:
    key = next(key for key in tensors if "lora_B" in key or "lora_up" in key)
    tensors[key].view(-1)[0] = torch.nextafter(tensors[key].view(-1)[0], torch.tensor(9.0))


def _one_layer_lost(tensors: Tensors, _header: dict[str, str]) -> None:
    layer = sorted(tensors)[0].split(".lora")[0].split(".alpha")[0]
    for key in [key for key in tensors if key.startswith(layer)]:
        del tensors[key]


def _bare_keys(tensors: Tensors, _header: dict[str, str]) -> None:
    for key in list(tensors):
        tensors[key.removeprefix("unet.")] = tensors.pop(key)


def _dropout_in_the_metadata(_tensors: Tensors, header: dict[str, str]) -> None:
    metadata = json.loads(header["lora_adapter_metadata"])
    header["lora_adapter_metadata"] = json.dumps(metadata | {"unet.lora_dropout": 0.9})


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (DIFFUSERS_FILE, _no_metadata, "has scaling 1 instead of alpha / rank = 2"),
        (DIFFUSERS_FILE, _bare_keys, "32 of 32 layers have no adapter"),
        (DIFFUSERS_FILE, _zero, r"the weights of .*lora_B differ"),
        (DIFFUSERS_FILE, _one_bit, r"the weights of .*lora_B differ"),
        (DIFFUSERS_FILE, _dropout_in_the_metadata, "the output differs by up to"),
        (KOHYA_FILE, _alpha_is_the_rank, "has scaling 1 instead of alpha / rank = 2"),
        (KOHYA_FILE, _zero, r"the weights of .*lora_B differ"),
        (KOHYA_FILE, _one_bit, r"the weights of .*lora_B differ"),
        (KOHYA_FILE, _one_layer_lost, "1 of 32 layers have no adapter"),
    ],
)
def test_a_file_that_is_another_adapter_is_named_with_the_difference(
    name: str,
    change: Callable[[Tensors, dict[str, str]], None],
    sentence: str,
    trained_unet: UnetMaker,
    fresh_unet: UnetMaker,
    tmp_path: Path,
) -> None:
    unet = trained_unet()
    files = export(unet, tmp_path)
    rewrite(tmp_path / name, change)
    with pytest.raises(JobError, match=sentence) as caught:
        verify_adapter(unet, files=files, fresh_unet=fresh_unet)
    assert caught.value.code == ErrorCode.TRAINING_FAILED
    assert name in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", [DIFFUSERS_FILE, KOHYA_FILE])
def test_a_truncated_or_missing_file_does_not_load_back(
    name: str, trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    files = export(unet, tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(JobError, match=f"The exported file {name} does not load back"):
        verify_adapter(unet, files=files, fresh_unet=fresh_unet)
    file.unlink()
    with pytest.raises(JobError, match=f"{name} does not load back .FileNotFoundError"):
        verify_adapter(unet, files=files, fresh_unet=fresh_unet)


def test_another_base_is_found_by_the_output(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    other = fresh_unet()
    other.conv_out.bias.data += 0.25
    with pytest.raises(JobError, match=r"the output differs by up to 0\.25"):
        verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=lambda: other)


def test_an_adapter_that_was_never_trained_is_refused(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    with pytest.raises(JobError, match="The training changed nothing"):
        verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet)


def test_an_adapter_with_a_value_that_is_not_finite_is_refused(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path
) -> None:
    unet = trained_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lora_A["default"].weight.data[
        0, 0
    ] = float("nan")
    with pytest.raises(JobError, match="not finite"):
        verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet)


def test_a_base_in_half_precision_is_held_once_while_it_reads(
    trained_unet: UnetMaker, fresh_unet: UnetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one in fp32 would not fit where the training just did."""
    unet, fresh = trained_unet(dtype=torch.float16), fresh_unet(torch.float16)
    files = export(unet, tmp_path)
    weights = {name: value for name, value in fresh.named_parameters() if ".to_q." in name}
    places = {name: value.data_ptr() for name, value in weights.items()}
    held, load = [], reading_back._load_as_diffusers_does

    def noting(*about: object) -> None:
        load(*about)  # type: ignore[arg-type]
        held.append(sum(value.untyped_storage().nbytes() for value in weights.values()))

    monkeypatch.setattr(reading_back, "_load_as_diffusers_does", noting)
    assert verify_adapter(unet, files=files, fresh_unet=lambda: fresh) == 0
    assert held == [4 * len(weights)] * 2
    assert {name: value.data_ptr() for name, value in weights.items()} == places


def test_an_export_copies_no_weights_of_the_base_without_dora(trained_unet: UnetMaker) -> None:
    unet = trained_unet()
    whole = kohya_part(unet, unet_names(unet))
    for layer in layers_of(unet, ADAPTER).values():
        layer.base_layer.to("meta")  # from where nothing can be copied
    assert kohya_part(unet, unet_names(unet)).keys() == whole.keys()
