"""What do ComfyUI and A1111 look for in an adapter? Kohya's names, alpha beside each layer.

Both read neither diffusers' keys nor its header. They look up `lora_unet_<path>.lora_down.weight`,
`.lora_up.weight` and `.alpha`, where the path has `_` for `.`, and scale by alpha / rank. For
Stable Diffusion 1.x and 2.x it is diffusers' module path; for XL it is the path in the UNet as it
was first released, which is the only one that A1111 finds there (ComfyUI: `comfy/lora.py`,
`model_lora_keys_unet`; A1111: `extensions-builtin/Lora/networks.py`; the trainer:
kohya-ss/sd-scripts, `networks/lora.py`).

DoRA's magnitudes are `.dora_scale`, on which readers differ. ComfyUI and Forge multiply the rows of
`W + ΔW` with `dora_scale / ‖W‖` (`comfy/weight_adapter/base.py`, `weight_decompose`), so what is
written is `m · ‖W‖ / ‖W + ΔW‖`, which gives there what was trained. A1111 takes the norms of the
columns and cannot apply it; diffusers leaves `dora_scale` out.
"""

from collections.abc import Callable, Mapping

import torch

#: What a path in the text encoder begins with.
TEXT_ENCODER = "text_encoder."

#: What the readers' names begin with where a path begins so; all others are in a UNet.
_PREFIXES = {TEXT_ENCODER: "lora_te_", "transformer.": "lora_transformer_"}

#: What kohya's trainer calls a parameter where its name differs from ours.
_KOHYA_NAMES = {
    "train_batch_size": "batch_size_per_device",
    "num_train_epochs": "num_epochs",
    "snr_gamma": "min_snr_gamma",
    "lora_dropout": "network_dropout",
}

#: What the model specification calls a prediction type where its name differs from ours.
_MODELSPEC_PREDICTION = {"v_prediction": "v"}


def kohya_weights(
    weights: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    path_of: Callable[[str], str],
    base_weights: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Rename PEFT's weights to kohya's names and put each layer's alpha beside them.

    Args:
        weights: `<module path>.lora_A.weight` and `.lora_B.weight`, with DoRA also
            `.lora_magnitude_vector`.
        alphas: of each module path. Readers without it, or with the rank in its place, would apply
            the adapter at another strength.
        path_of: the readers' path of a layer, given its module path; in the text encoder it begins
            with `text_encoder.`.
        base_weights: of each module path with DoRA, fp32.
    """
    renamed = {}
    for key, value in weights.items():
        path, half = key.removesuffix(".weight").rsplit(".", 1)
        if part := {"lora_A": "lora_down", "lora_B": "lora_up"}.get(half):
            renamed[f"{_kohya_name(path_of(path))}.{part}.weight"] = value
    for path, alpha in alphas.items():
        renamed[f"{_kohya_name(path_of(path))}.alpha"] = _exact_scalar(alpha)
    for path, base in base_weights.items():
        tuned = base + _difference(renamed, path_of(path), base)
        magnitude = weights[f"{path}.lora_magnitude_vector"].flatten()
        scale = magnitude * _row_norms(base) / _row_norms(tuned)
        shape = (-1, *[1] * (base.dim() - 1))
        renamed[f"{_kohya_name(path_of(path))}.dora_scale"] = scale.view(shape)
    return renamed


def tuned_by_comfyui(
    file: Mapping[str, torch.Tensor], path: str, base: torch.Tensor
) -> torch.Tensor:
    """The weight that ComfyUI puts in the place of `base` of the layer at the readers' `path`."""
    base = base.float()
    tuned = base + _difference(file, path, base)
    scale = file.get(f"{_kohya_name(path)}.dora_scale")
    if scale is None:
        return tuned
    norms = _row_norms(base).view(scale.shape) + torch.finfo(base.dtype).eps
    return tuned * (scale / norms)


def _difference(file: Mapping[str, torch.Tensor], path: str, base: torch.Tensor) -> torch.Tensor:
    """`B A · alpha / rank` in the shape of `base`."""
    name = _kohya_name(path)
    down, up = file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"]
    scale = file[f"{name}.alpha"].item() / down.shape[0]
    return (up.flatten(1) @ down.flatten(1)).view(base.shape) * scale


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.norm(weight.flatten(1), dim=1)
    return norms


def _kohya_name(path: str) -> str:
    for beginning, prefix in _PREFIXES.items():
        if path.startswith(beginning):
            return prefix + path.removeprefix(beginning).replace(".", "_")
    return "lora_unet_" + path.replace(".", "_")


def _exact_scalar(value: float) -> torch.Tensor:
    """`value` as a tensor without dimensions: float32, or float64 where float32 would round it."""
    single = torch.tensor(float(value), dtype=torch.float32)
    return single if single.item() == value else torch.tensor(float(value), dtype=torch.float64)


def kohya_header(
    *,
    rank: int,
    alpha: float,
    base_model_name: str,
    version: Mapping[str, str],
    trigger_word: str | None,
    training: Mapping[str, str],
) -> dict[str, str]:
    """What kohya's trainer (`ss_*`) and the model specification 1.0.1 (`modelspec.*`) say.

    Without a date: the same adapter is the same file. `training` is as `export_adapter` takes it,
    `version` what the family says of the base.
    """
    resolution = training.get("resolution", "512")
    prediction = training.get("prediction_type", "epsilon")
    header = {f"ss_{_KOHYA_NAMES.get(name, name)}": value for name, value in training.items()}
    header |= version
    header |= {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_sd_model_name": base_model_name,
        "ss_resolution": f"({resolution}, {resolution})",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": trigger_word or f"Style adapter for {base_model_name}",
        "modelspec.description": _in_words(rank, alpha, base_model_name, training),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": _MODELSPEC_PREDICTION.get(prediction, prediction),
    }
    if trigger_word:
        header["modelspec.trigger_phrase"] = trigger_word
        header["modelspec.usage_hint"] = f"Trigger word: {trigger_word}"
    return header


def _in_words(rank: int, alpha: float, base_model_name: str, training: Mapping[str, str]) -> str:
    """One sentence for a person."""
    text = f"A style adapter (LoRA, rank {rank}, alpha {alpha:g}) for {base_model_name}"
    if "num_train_images" in training and "steps" in training:
        count, steps = training["num_train_images"], training["steps"]
        text += f", trained on {count} pictures for {steps} steps"
    return f"{text}."
