"""A base model is whole and fits together, or the job says what is wrong with it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.unit.training.builders import CPU, command, run
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.contract.parameters import TrainingParameters
from worker.training.adapter import add_adapter
from worker.training.base_model import BaseModelShelf, load_base_model
from worker.training.cache import encode
from worker.training.device import arithmetic_for
from worker.training.images import Pictures


def load(folder: Path):
    entry = BaseModelEntry(name="mine", location=str(folder))
    return load_base_model(entry, arithmetic_for("no", CPU), allow_hub=False)


@pytest.fixture
def copied(tiny_base_model: Path, tmp_path: Path) -> Path:
    """A copy of the base model, to be broken."""
    return shutil.copytree(tiny_base_model, tmp_path / "copied")


def weights(folder: Path, part: str) -> Path:
    [file] = (folder / part).glob("*.safetensors")
    return file


def part_of(model, part: str):
    return model.vae if part == "vae" else model.text_encoders[0].model


def cut_off(part: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = weights(folder, part)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def without_weight(part: str, name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = weights(folder, part)
        kept = {k: v for k, v in safetensors.torch.load_file(file).items() if name not in k}
        safetensors.torch.save_file(kept, file, metadata={"format": "pt"})

    return damage


def without(part: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / part)


def pickled(folder: Path) -> None:
    """The weights as a pickle alone, which would run code when it is opened."""
    file = weights(folder, "unet")
    torch.save(safetensors.torch.load_file(file), file.with_suffix(".bin"))
    file.unlink()


def setting(file: str, name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, name: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_off("unet"), "cannot be loaded"),
        (cut_off("vae"), "cannot be loaded"),
        (cut_off("text_encoder"), "cannot be loaded"),
        (without_weight("unet", "mid_block.attentions.0.proj_in"), "cannot be loaded"),
        (without_weight("vae", "quant_conv.bias"), "cannot be loaded"),
        (without_weight("text_encoder", "token_embedding"), "cannot be loaded"),
        (without("unet"), "cannot be loaded"),
        (without("scheduler"), "cannot be loaded"),
        (without("tokenizer"), "its tokenizer has 2 tokens"),
        (pickled, "cannot be loaded"),
        (setting("scheduler/scheduler_config.json", "prediction_type", "sample"), "'sample'"),
        (without(""), "cannot be loaded"),
    ],
)
def test_a_base_model_that_is_not_whole_is_never_trained_on(copied, damage, says):
    damage(copied)
    with pytest.raises(JobError) as caught:
        load(copied)
    assert caught.value.code is ErrorCode.BASE_MODEL_UNAVAILABLE
    assert not caught.value.transient
    assert "base model mine" in caught.value.message
    assert says in caught.value.message
    assert str(copied) not in caught.value.message


class Payload:
    """A pickle that runs a program when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside safetensors"])
def test_a_pickle_among_the_weights_is_never_opened(copied, tmp_path, part, alone):
    mark, file = tmp_path / "it ran", weights(copied, part)
    names = ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt", "weights.pt")
    for name in names:
        (file.parent / name).write_bytes(pickle.dumps(Payload(mark)))
    if alone:
        file.unlink()
        with pytest.raises(JobError) as caught:
            load(copied)
        assert caught.value.code is ErrorCode.BASE_MODEL_UNAVAILABLE
    else:
        load(copied)
    assert not mark.exists()
    pickle.loads((file.parent / names[0]).read_bytes())
    assert mark.exists(), "the payload would have been seen"


def test_weights_under_the_names_of_older_files_are_whole(copied):
    """Stable Diffusion 1.5's own files spell attention and text encoder so."""
    plain = load(copied)
    file = weights(copied, "vae")
    new = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    older = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        for now, then in new.items():
            name = name.replace(now, then)
        older[name] = tensor
    assert any("query." in name for name in older)
    safetensors.torch.save_file(older, file, metadata={"format": "pt"})
    file = weights(copied, "text_encoder")
    text = {f"text_model.{k}": v for k, v in safetensors.torch.load_file(file).items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    safetensors.torch.save_file(text, file, metadata={"format": "pt"})
    again = load(copied)
    for part in ("vae", "text_encoder"):
        before, after = (part_of(model, part).state_dict() for model in (plain, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tokenizer_that_does_not_say_its_length_encodes_what_the_text_encoder_takes(
    copied, tiny_base_model, pictures, tmp_path
):
    file = copied / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_max_length"]
    file.write_text(json.dumps(config))
    model = load(copied)
    assert model.text_encoders[0].tokenizer.model_max_length > 10**6
    read = list(Pictures(command(copied, pictures, tmp_path / "j").images, 64, "fail"))
    expected = encode(load(tiny_base_model), read, mirrored=False).embeddings.states
    assert torch.equal(encode(model, read, mirrored=False).embeddings.states, expected)


def test_a_full_gpu_is_not_taken_for_a_missing_base_model(
    tiny_base_model, pictures, tmp_path, mocker
):
    """torch's error is a RuntimeError, as many a loading error is."""
    mocker.patch(
        "worker.training.base_model.load_denoiser",
        side_effect=torch.OutOfMemoryError("CUDA out of memory"),
    )
    with pytest.raises(JobError) as caught:
        run(command(tiny_base_model, pictures, tmp_path))
    assert caught.value.code is ErrorCode.GPU_OUT_OF_MEMORY


def test_the_base_stays_warm_for_every_job_that_uses_the_same_weights(tiny_base_model, mocker):
    from worker.training import base_model

    loads = mocker.spy(base_model, "load_base_model")
    shelf, entry = BaseModelShelf(), BaseModelEntry(name="tiny", location=str(tiny_base_model))
    kept = [shelf.get(entry, arithmetic_for(p, CPU)) for p in ("no", "fp16", "bf16", "no")]
    assert loads.call_count == 1
    assert all(model is kept[0] for model in kept)
    assert kept[0].arithmetic == arithmetic_for("no", CPU)
    shelf.get(entry.model_copy(update={"name": "other"}), arithmetic_for("no", CPU))
    assert loads.call_count == 2


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        ("to_nowhere", "to_q"),
        ("to_out", "to_out.0"),
        ("token", "to_k"),
        ("ff.net.0.porj", "ff.net.0.proj"),
        ("projin", "proj_in"),
        ("attn1", "attn1.to_v"),
        ("norm1", "to_q"),
    ],
)
def test_a_target_that_cannot_have_an_adapter_is_refused_with_the_nearest_that_can(
    tiny_base_model, target, nearest
):
    unet = load(tiny_base_model).unet
    rules = TrainingParameters(target_modules=["to_q", target])
    with pytest.raises(JobError, match=f"target_modules: {target} names no layer") as caught:
        add_adapter(unet, rules, seed=1)
    assert caught.value.code is ErrorCode.INVALID_JOB
    assert caught.value.message.endswith(f"names such as {nearest}.")
    assert not any("lora" in name for name, _ in unet.named_modules())
