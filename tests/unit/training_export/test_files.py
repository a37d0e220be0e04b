"""What stands in the two files."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer

from tests.unit.training_export.conftest import UnetMaker
from worker.contract.target_modules import TARGET_PRESETS
from worker.training.export import DIFFUSERS_FILE, KOHYA_FILE, export_adapter

TRAINING = {"learning_rate": "0.0001", "train_batch_size": "2", "resolution": "64"}


def export(unet: Any, folder: Path, **changes: Any) -> list[Path]:
    arguments = {"base_model_name": "tiny", "trigger_word": "hatchstyle", "training": TRAINING}
    return export_adapter(unet, folder=folder, **(arguments | changes))


def header(file: Path) -> dict[str, str]:
    with safetensors.safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def load_in_one_line(base: Path, file: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(str(file))
    return pipeline


@pytest.mark.parametrize("name", [DIFFUSERS_FILE, KOHYA_FILE])
def test_one_line_of_plain_diffusers_loads_either_file_at_full_strength(
    name: str, trained_unet: UnetMaker, tiny_base_model: Path, tmp_path: Path
) -> None:
    unet = trained_unet(rank=16, alpha=32)
    export(unet, tmp_path)
    pipeline = load_in_one_line(tiny_base_model, tmp_path / name)

    layers = [part for part in pipeline.unet.modules() if isinstance(part, LoraLayer)]
    assert len(layers) == 32
    assert {scaling for part in layers for scaling in part.scaling.values()} == {2.0}

    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, 32)
    with torch.no_grad():
        assert torch.equal(pipeline.unet(*inputs).sample, unet.eval()(*inputs).sample)


@pytest.mark.parametrize("name", [DIFFUSERS_FILE, KOHYA_FILE])
def test_a_pipeline_generates_without_dropout(
    name: str, trained_unet: UnetMaker, tiny_base_model: Path, tmp_path: Path
) -> None:
    export(trained_unet(), tmp_path)
    unet = load_in_one_line(tiny_base_model, tmp_path / name).unet
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    with torch.no_grad():
        assert torch.equal(unet(*inputs).sample, unet(*inputs).sample)


def test_the_diffusers_file_has_keys_of_the_unet_and_metadata_of_the_adapter(
    trained_unet: UnetMaker, tmp_path: Path
) -> None:
    file, _ = export(trained_unet(rank=4, alpha=3), tmp_path)
    assert file == tmp_path / "lora_weights.safetensors"

    weights = safetensors.torch.load_file(file)
    assert len(weights) == 64
    for key, value in weights.items():
        assert key.startswith("unet.")
        assert key.endswith((".lora_A.weight", ".lora_B.weight"))
        assert value.dtype == torch.float32

    metadata = json.loads(header(file)["lora_adapter_metadata"])
    assert metadata == {
        "unet.r": 4,
        "unet.lora_alpha": 3,
        "unet.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }


def test_the_kohya_file_has_the_names_that_comfyui_and_a1111_look_up(
    trained_unet: UnetMaker, tmp_path: Path
) -> None:
    _, file = export(trained_unet(targets=TARGET_PRESETS["attn-mlp"]), tmp_path)
    assert file == tmp_path / "lora_weights.kohya.safetensors"

    layers = ["ff_net_0_proj", "ff_net_2"]
    for attention in ("attn1", "attn2"):
        layers += [f"{attention}_{part}" for part in ("to_q", "to_k", "to_v", "to_out_0")]
    blocks = [
        "down_blocks_0_attentions_0",
        "mid_block_attentions_0",
        "up_blocks_1_attentions_0",
        "up_blocks_1_attentions_1",
    ]
    assert set(safetensors.torch.load_file(file)) == {
        f"lora_unet_{block}_transformer_blocks_0_{layer}.{part}"
        for block in blocks
        for layer in layers
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }


@pytest.mark.parametrize(("rank", "alpha"), [(16, 32), (4, 4), (1, 0.5), (3, 0.1), (4, 7)])
def test_every_kohya_alpha_is_the_real_alpha_and_never_the_rank(
    rank: int, alpha: float, trained_unet: UnetMaker, tmp_path: Path
) -> None:
    _, file = export(trained_unet(rank=rank, alpha=alpha), tmp_path)
    weights = safetensors.torch.load_file(file)
    alphas = [value for key, value in weights.items() if key.endswith(".alpha")]
    assert len(alphas) == 32
    assert {value.item() for value in alphas} == {alpha}
    assert all(value.is_floating_point() and value.shape == () for value in alphas)
    downs = [value for key, value in weights.items() if key.endswith("lora_down.weight")]
    assert {value.shape[0] for value in downs} == {rank}


def test_the_kohya_header_says_how_it_was_trained(trained_unet: UnetMaker, tmp_path: Path) -> None:
    _, file = export(trained_unet(rank=8, alpha=12.5), tmp_path)
    content = file.read_bytes()
    tensors = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert header(file) == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "12.5",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "tiny",
        "ss_learning_rate": "0.0001",
        "ss_batch_size_per_device": "2",
        "ss_resolution": "(64, 64)",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "hatchstyle",
        "modelspec.description": "A style adapter (LoRA, rank 8, alpha 12.5) for tiny.",
        "modelspec.trigger_phrase": "hatchstyle",
        "modelspec.usage_hint": "Trigger word: hatchstyle",
        "modelspec.hash_sha256": f"0x{tensors}",
        "sshs_model_hash": tensors,
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
    }


def test_a_header_without_a_trigger_word_has_no_trigger_phrase(
    trained_unet: UnetMaker, tmp_path: Path
) -> None:
    training = {"prediction_type": "v_prediction"}
    _, file = export(trained_unet(), tmp_path, trigger_word=None, training=training)
    found = header(file)
    assert "modelspec.trigger_phrase" not in found
    assert found["modelspec.title"] == "Style adapter for tiny"
    assert found["modelspec.prediction_type"] == "v"
    assert found["modelspec.resolution"] == "512x512"


_EXPORT_AND_HASH = """
import hashlib, sys, torch
from pathlib import Path
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from worker.training.export import export_adapter
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
torch.manual_seed(0)
unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
training = {"learning_rate": "1e-4", "seed": "5", "steps": "60"}
for file in export_adapter(
    unet, folder=Path(sys.argv[2]), base_model_name="tiny", trigger_word="w", training=training
):
    print(hashlib.sha256(file.read_bytes()).hexdigest())
"""


def test_equal_weights_give_equal_bytes_in_any_process(
    tiny_base_model: Path, tmp_path: Path
) -> None:
    def digests(run: str) -> list[str]:
        environment = os.environ | {"PYTHONHASHSEED": run, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT_AND_HASH, str(tiny_base_model), str(tmp_path / run)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    first = digests("1")
    assert len(first) == 2
    assert digests("2") == first


def test_other_weights_give_other_bytes(trained_unet: UnetMaker, tmp_path: Path) -> None:
    def digests(folder: str, seed: int) -> list[str]:
        files = export(trained_unet(seed=seed), tmp_path / folder)
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    first = digests("a", seed=1)
    assert digests("b", seed=1) == first
    assert not set(digests("c", seed=2)) & set(first)


def test_a_file_appears_whole_or_not_at_all(
    trained_unet: UnetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = trained_unet()
    export(unet, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {DIFFUSERS_FILE, KOHYA_FILE}

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(trained_unet(seed=9), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_export_and_loading_back_never_ask_the_model_hub(
    trained_unet: UnetMaker,
    fresh_unet: UnetMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from worker.training.verify import verify_adapter

    asked = []

    def refuse(*arguments: object, **_named: object) -> None:
        asked.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    unet = trained_unet()
    # With a hub id here, PEFT's save looks for the base's config.json on the hub.
    unet.peft_config["default"].base_model_name_or_path = "example/base-model"
    verify_adapter(unet, files=export(unet, tmp_path), fresh_unet=fresh_unet)
    assert not asked
