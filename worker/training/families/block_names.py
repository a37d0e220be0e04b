"""What were a UNet's layers called where Stable Diffusion was first released?

There the blocks are counted through: `input_blocks.0` is the first convolution, each level has its
residual layers and then one that halves the size; `output_blocks` likewise, with one residual layer
more a level. In a block, 0 is the residual layer (or what changes the size), 1 the attention.
"""

import re

#: Layers outside the blocks.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

#: The middle block's parts.
_MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}

#: Layers of a residual layer.
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_PART = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


def original_path(path: str, *, layers: int) -> str:
    """The original name of the layer that diffusers calls `path`.

    Args:
        path: a module path in diffusers' UNet.
        layers: residual layers a level on the way down; one more on the way up.

    Raises:
        ValueError: no such layer is known.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    match = _PART.fullmatch(path)
    if match is None:
        raise ValueError(f"{path} is not a layer of a UNet")
    side, level, part, number, rest = match.groups()
    inner = _RESIDUAL[rest] if part == "resnets" else rest
    if side is None:
        return f"middle_block.{_MIDDLE[f'{part}.{number}']}.{inner}"
    first = int(level) * (layers + 1)
    place = int(number)
    if part == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if part == "upsamplers":
        # After the attention, which every level of XL has that is made larger.
        return f"output_blocks.{first + layers}.2.conv"
    within = {"resnets": 0, "attentions": 1}[part]
    if side == "down":
        return f"input_blocks.{first + 1 + place}.{within}.{inner}"
    return f"output_blocks.{first + place}.{within}.{inner}"
