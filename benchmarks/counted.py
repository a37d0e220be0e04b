"""What work is in one step of each base model? Counted, not measured: `make bench-counted`.

The exact models run on torch's `meta` device, which has shapes and no numbers, with the attention
and dropout operators that a GPU has. Counted are floating-point operations (2 for each multiply and
add), operators that start a kernel, and bytes that the forward pass keeps for the backward pass.
The last line is one JSON object.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from worker.contract.base_model import BaseModelEntry, Family
from worker.contract.base_model_choice import for_base_model
from worker.contract.parameters import TrainingParameters
from worker.contract.target_modules import TARGET_PRESETS
from worker.demo.tiny_base_model import random_autoencoder
from worker.demo.tiny_families import random_denoiser
from worker.training.adapter import add_adapter, remove_adapter
from worker.training.base_model import unet_of_same_weights
from worker.training.conditioning import random_conditions
from worker.training.families.known import family_of
from worker.training.packing.arithmetic import PackedArithmetic

_META = torch.device("meta")

#: Operators that only look at a tensor in another way, or make one of no content.
_VIEWS = (
    *("view", "t", "transpose", "detach", "split", "split_with_sizes", "expand", "unsqueeze"),
    *("squeeze", "permute", "slice", "select", "_unsafe_view", "unbind", "alias", "as_strided"),
    *("empty", "empty_like", "empty_strided", "new_empty_strided"),
)


@dataclass(frozen=True)
class Work:
    """The work of a UNet's forward and backward pass on one sample, or of one part of a loop."""

    gflop: float
    kernels: int
    saved_gib: float


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def step_work(
    *,
    family: Family = "sd1",
    resolution: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    dropout: float = 0.0,
    checkpointing: bool = False,
    grouped: bool = True,
    **rules: Any,
) -> Work:
    """A forward and backward pass of the adapted UNet on one sample.

    Args:
        family: whose published sizes it has; 2.1, XL base 1.0 and 3 medium of the newer ones.
        resolution: pixels.
        dtype: of the base.
        dropout: of the adapter.
        checkpointing: whether activations are recomputed.
        grouped: our arithmetic of the adapter, or PEFT's.
        rules: other parameters of the job, such as its target modules.
    """
    with _META:
        unet = random_denoiser(family, "full").requires_grad_(requires_grad=False).to(dtype)
        base = BaseModelEntry(name=family, location=family, family=family)
        asked = for_base_model(TrainingParameters(lora_dropout=dropout, **rules), base)
        add_adapter(unet, asked, seed=1)
        if not grouped:
            config = unet.peft_config["default"]
            remove_adapter(unet)
            unet.add_adapter(config)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()

    noisy, told = _inputs(unet, resolution, dtype)

    def passes() -> None:
        with _saved(unet, saved):
            output = unet(noisy, **told, return_dict=False)[0]
        output.float().square().mean().backward()

    saved: dict[int, int] = {}
    with _as_on_a_gpu():
        with torch.no_grad():
            unet(noisy, **told)  # of a size that is new the masks' sizes are found out, once
        gflop, kernels = _count(passes)
    return Work(gflop, kernels, sum(saved.values()) / 2**30)


def packed_work(
    jobs: int,
    *,
    resolution: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    dropout: float = 0.0,
) -> Work:
    """A pass that several jobs of Stable Diffusion 1.5 share, one sample of each.

    With it is counted what brings their matrices together and their gradients apart.
    """
    with _META:
        unet = random_denoiser("sd1", "full").requires_grad_(requires_grad=False).to(dtype)
        shared = unet_of_same_weights(unet)
        job: Any = add_adapter(unet, TrainingParameters(lora_dropout=dropout), seed=1)
        shared.add_adapter(LoraConfig(r=1, target_modules=list(TARGET_PRESETS["attn"])), "default")
    unet.train()
    shared.requires_grad_(requires_grad=False).train()
    arithmetic = PackedArithmetic(shared)
    arithmetic.take([job] * jobs, [0] * jobs)
    noisy, told = _inputs(shared, resolution, dtype)
    told = {name: value.expand(jobs, *value.shape[1:]) for name, value in told.items()}
    noisy = noisy.expand(jobs, *noisy.shape[1:])

    def passes() -> None:
        with _saved(shared, saved):
            output = shared(noisy, **told, return_dict=False)[0]
        output.float().square().mean().backward()
        arithmetic.give_back()

    saved: dict[int, int] = {}
    with _as_on_a_gpu():
        with torch.no_grad():
            shared(noisy, **told)
        gflop, kernels = _count(passes)
    return Work(gflop, kernels, sum(saved.values()) / 2**30)


def encoder_work(resolution: int = 512) -> Work:
    """The VAE's encoder on one picture, which a loop without a cache runs at every step."""
    with _META:
        vae = random_autoencoder("full").requires_grad_(requires_grad=False)
        pixels = torch.empty(1, 3, resolution, resolution)
    gflop, kernels = _count(lambda: vae.encode(pixels))
    return Work(gflop, kernels, 0.0)


def _inputs(unet: Any, resolution: int, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """The denoiser's latents and other arguments for one sample."""
    side = resolution // 8
    with _META:
        noisy = torch.empty(1, unet.config.in_channels, side, side, dtype=dtype)
        timesteps = torch.empty(1, dtype=torch.int64)
    told = random_conditions(family_of(unet.config), unet.config, torch.Generator())
    return noisy, {"timestep": timesteps, **told.to(_META).arguments(dtype)}


def _count(work: Callable[[], object]) -> tuple[float, int]:
    with FlopCounterMode(display=False) as operations, _Kernels() as kernels:
        work()
    launched = sum(n for name, n in kernels.counts.items() if name not in _VIEWS)
    return operations.get_total_flops() / 1e9, launched


@contextmanager
def _saved(unet: torch.nn.Module, found: dict[int, int]) -> Iterator[None]:
    """Note the size of each storage that is kept for the backward pass and is no weight."""
    weights = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.append(storage)  # alive, so that no other takes its number
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Attention and dropout by the operators that CUDA has; `meta` would take them apart."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, *_: Any) -> torch.Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p else x

    with (
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(functional, "dropout", dropout),
    ):
        yield


#: The base models that are counted, each at its own resolution.
_BASE_MODELS: dict[str, tuple[Family, int]] = {
    "1.5, 512 px": ("sd1", 512),
    "2.1, 768 px": ("sd2", 768),
    "XL base 1.0, 1024 px": ("sdxl", 1024),
    "3 medium, 1024 px": ("sd3", 1024),
}


def _print_base_models() -> None:
    """What a job with the default parameters takes of a GPU, and what recomputing saves."""
    print(
        "\n| Stable Diffusion, bf16, dropout 0.1 | UNet, GiB | GFLOP | kernels | saved, GiB "
        "| with checkpointing |\n|---|---|---|---|---|---|"
    )
    for name, (family, side) in _BASE_MODELS.items():
        with _META:
            weights = sum(w.numel() for w in random_denoiser(family, "full").parameters())
        work = step_work(family=family, resolution=side, dropout=0.1)
        small = step_work(family=family, resolution=side, dropout=0.1, checkpointing=True)
        print(
            f"| {name} | {weights * 2 / 2**30:.2f} | {work.gflop:.0f} | {work.kernels} "
            f"| {work.saved_gib:.2f} | {small.saved_gib:.2f} |"
        )


def _print_packed() -> dict[str, Work]:
    """What a pass costs that several jobs share."""
    print(
        "\n| jobs in a pass, 1.5, 512 px, bf16, dropout 0.1 | GFLOP a sample | kernels "
        "| kernels a sample | saved a sample, GiB |\n|---|---|---|---|---|"
    )
    found = {}
    for jobs in (2, 4, 8, 16):
        found[f"packed, {jobs} jobs"] = work = packed_work(jobs, dropout=0.1)
        print(
            f"| {jobs} | {work.gflop / jobs:.1f} | {work.kernels} | {work.kernels / jobs:.0f} "
            f"| {work.saved_gib / jobs:.3f} |"
        )
    return found


def main() -> None:
    ours, encoder = step_work(), encoder_work()
    rows = {
        "ours": ours,
        "ours, dropout 0.1": step_work(dropout=0.1),
        "ours, checkpointing": step_work(checkpointing=True),
        "ours, feed-forward too": step_work(target_modules="attn-mlp"),
        "DoRA": step_work(use_dora=True),
        "PEFT": step_work(grouped=False),
        "PEFT, dropout 0.1": step_work(grouped=False, dropout=0.1),
        "ours, 256 px": step_work(resolution=256),
        "ours, 768 px": step_work(resolution=768),
        "VAE's encoder": encoder,
    }
    print(
        "| Stable Diffusion 1.5, 512 px, bf16 | GFLOP | kernels | saved, GiB |\n|---|---|---|---|"
    )
    for name, work in rows.items():
        print(f"| {name} | {work.gflop:.1f} | {work.kernels} | {work.saved_gib:.3f} |")
    naive = rows["ours, checkpointing"].gflop + encoder.gflop
    script = rows["PEFT"].gflop + encoder.gflop
    print(f"\nof the arithmetic of the script's loop: 1 / {script / ours.gflop:.2f}")
    print(f"of the arithmetic of a naive loop:      1 / {naive / ours.gflop:.2f}")
    _print_base_models()
    rows |= _print_packed()
    print(json.dumps({name: asdict(work) for name, work in rows.items()}))


if __name__ == "__main__":
    main()
