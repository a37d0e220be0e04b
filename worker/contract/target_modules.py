"""Which layers of the denoiser get an adapter? Presets by name, and what they name in a family."""

from worker.contract.base_model import Family

#: Projections of the text in attention that joins text and picture.
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

#: Named sets of linear layers of the denoiser that get an adapter.
TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "attn": ("to_q", "to_k", "to_v", "to_out.0"),
    "attn-mlp": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
}

#: The same for families whose blocks have more of them, as in diffusers' scripts.
_PRESETS_OF: dict[Family, dict[tuple[str, ...], tuple[str, ...]]] = {
    "sd3": {
        TARGET_PRESETS["attn"]: (*TARGET_PRESETS["attn"], *TEXT_STREAM),
        TARGET_PRESETS["attn-mlp"]: (
            *TARGET_PRESETS["attn-mlp"],
            *TEXT_STREAM,
            "ff_context.net.0.proj",
            "ff_context.net.2",
        ),
    }
}


def in_family(layers: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """`layers`, where they are a preset's with all that it names in this family."""
    return _PRESETS_OF.get(family, {}).get(layers, layers)
