"""Which options cannot work with one another? Each is named, with what to send instead.

A value alone is judged where it is declared; here two are judged together. What would have no
effect beside another is refused as well: it was sent for some reason.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker.contract.base_model import Family

#: Default peak learning rate of each optimizer: Prodigy finds the rate and takes this as a factor.
DEFAULT_LEARNING_RATE = {"adamw": 1e-4, "adamw8bit": 1e-4, "prodigy": 1.0, "adafactor": 1e-4}

#: Largest learning rate of an optimizer that takes it as one.
_MAX_LEARNING_RATE = 1e-2

#: Smallest factor that Prodigy can make something of.
_MIN_PRODIGY_FACTOR = 0.1

#: Options that only some optimizers have, with their defaults.
_OF_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}

#: Options of prior preservation, with their defaults.
OF_PRIOR = {"class_prompt": None, "prior_loss_weight": 1.0, "num_class_images": 100}

#: What sides of pictures are multiples of where the denoiser takes patches of 2 × 2 latents; the
#: longest side that it has places for; and the resolution at which buckets step by 8 pixels.
_PATCH, _LONGEST_SIDE, _EIGHTHS = 16, 1536, 64

#: A parameter and what is wrong with it beside another.
Conflict = tuple[str, str]


def conflicts(values: Mapping[str, Any]) -> list[Conflict]:
    """What cannot work together in `values`, every parameter after defaults; empty if all can."""
    return [conflict for rule in _RULES for conflict in rule(values)]


def _learning_rate(values: Mapping[str, Any]) -> Iterable[Conflict]:
    optimizer, rate = values["optimizer"], values["learning_rate"]
    if optimizer == "prodigy":
        if rate < _MIN_PRODIGY_FACTOR:
            yield (
                "learning_rate",
                f"is {rate:g}, but optimizer prodigy finds the rate itself and multiplies it by "
                "this; send 1.0, or none",
            )
    elif rate > _MAX_LEARNING_RATE:
        yield (
            "learning_rate",
            f"should be less than or equal to {_MAX_LEARNING_RATE:g} with optimizer {optimizer}, "
            f"found {rate:g}",
        )


def _adam(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["optimizer"] == "adafactor":
        for name, default in _OF_ADAM.items():
            if values[name] != default:
                yield name, f"is not an option of optimizer adafactor; send none, or {default:g}"


def _warm_up(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["lr_scheduler"] == "constant" and values["lr_warmup_steps"]:
        yield (
            "lr_warmup_steps",
            "has no effect with lr_scheduler constant; send lr_scheduler constant_with_warmup",
        )


def _dora(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["use_dora"] and values["train_text_encoder"]:
        yield (
            "use_dora",
            "cannot be with train_text_encoder: pipelines do not load a text encoder's norms; "
            "send one of them",
        )


def _text_encoder(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["text_encoder_learning_rate"] is None:
        return
    if not values["train_text_encoder"]:
        yield (
            "text_encoder_learning_rate",
            "has no effect without train_text_encoder; send train_text_encoder true, or no rate",
        )
    elif values["optimizer"] == "prodigy":
        yield (
            "text_encoder_learning_rate",
            "cannot be with optimizer prodigy, which finds one rate for all; send none",
        )


def _prior_preservation(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["with_prior_preservation"]:
        if values["class_prompt"] is None:
            yield (
                "class_prompt",
                "is missing: with_prior_preservation needs to know what the class is; send what "
                "its pictures show",
            )
        return
    for name, default in OF_PRIOR.items():
        if values[name] != default:
            yield (
                name,
                "has no effect without with_prior_preservation; send with_prior_preservation true, "
                f"or no {name}",
            )


def _previews(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["preview_points"] and values["validation_prompts"] == ():
        yield (
            "preview_points",
            "has no effect with an empty list of validation_prompts, which asks for no previews; "
            "send prompts, or none of both",
        )


def base_model_conflicts(values: Mapping[str, Any], family: Family) -> list[Conflict]:
    """What of `values`, as for `conflicts`, cannot be with a base model of this family."""
    found = []
    if values["train_text_encoder"] and family in ("sdxl", "sd3"):
        found.append(
            (
                "train_text_encoder",
                "cannot be with this base model, which has several text encoders; send false, or "
                "a base_model of Stable Diffusion 1.x or 2.x",
            )
        )
    return found + (list(_flow_matching(values)) if family == "sd3" else [])


def _flow_matching(values: Mapping[str, Any]) -> Iterable[Conflict]:
    if values["prediction_type"] is not None:
        yield (
            "prediction_type",
            "cannot be chosen with this base model, which learns a flow; send none",
        )
    if values["snr_gamma"] is not None:
        yield (
            "snr_gamma",
            "is for base models that predict noise or velocities, and this one learns a flow; send "
            "none",
        )
    side, buckets = values["resolution"], values["aspect_ratio_buckets"]
    if side % _PATCH:
        yield "resolution", f"must be a multiple of {_PATCH} with this base model, found {side}"
    longest, elongated = side, ""
    if buckets:
        longest, elongated = 2 * side, ", half of it with aspect_ratio_buckets"
    if longest > _LONGEST_SIDE:
        yield (
            "resolution",
            f"is {side}, and this base model takes pictures of at most {_LONGEST_SIDE} pixels"
            f"{elongated}",
        )
    if buckets and side < 2 * _EIGHTHS:
        yield (
            "aspect_ratio_buckets",
            f"needs a resolution of at least {2 * _EIGHTHS} with this base model",
        )


_RULES: tuple[Callable[[Mapping[str, Any]], Iterable[Conflict]], ...] = (
    _learning_rate,
    _adam,
    _warm_up,
    _dora,
    _text_encoder,
    _prior_preservation,
    _previews,
)
