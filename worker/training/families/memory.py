"""How much GPU memory does training take, beside the base model's weights?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker.contract.parameters import TrainingParameters
from worker.contract.target_modules import TARGET_PRESETS, TEXT_STREAM

#: How a forward pass is made: as it is, with dropout in the adapter, or activations recomputed.
PassKind = Literal["plain", "dropout", "checkpointing"]

#: What of the UNet has an adapter: attention alone, or feed-forward too, for which every other
#: choice of layers counts.
Layers = Literal["attn", "attn-mlp"]

#: An adapter of these layers, without and with DoRA.
AdapterKind = Literal["attn", "attn-mlp", "dora", "dora-mlp"]

_GIB = 2**30

#: Bytes for each weight of the adapter: itself, its gradient and a recorded step's copy of that, 4
#: each, and what the optimizer keeps.
_BYTES_A_WEIGHT = {"adamw": 12 + 8, "adamw8bit": 12 + 2, "prodigy": 12 + 16, "adafactor": 12 + 4}


@dataclass(frozen=True)
class TextMemory:
    """What a text encoder that is trained takes.

    Attributes:
        weights_a_rank: weights of its adapter for each rank.
        saved: what it keeps of a caption for the backward pass, GiB: it is always fp32.
    """

    weights_a_rank: int
    saved: float


@dataclass(frozen=True)
class DenoiserMemory:
    """GPU memory of a family, GiB, for a base in half precision.

    Weights, and what is kept between the passes, are counted by `python -m benchmarks.counted` on
    the family's published sizes. Workspace and the backward pass's own needs are estimates.

    Attributes:
        workspace: what there is whatever is trained.
        weights_a_rank: weights of the adapter for each rank.
        saved: what one sample keeps between forward and backward pass at any size.
        saved_at_512: the same for each 512 × 512 pixels, by kind of adapter and of pass.
        saved_of_weights: what a pass keeps of the weights, however many samples and pixels there
            are, where it is worth counting: with DoRA, in fp32 whatever the precision.
        prompt_share: what a prompt keeps beside a picture, as a share of 512 × 512 pixels: where
            text goes through the same blocks.
        backward_at_512: what the backward pass of one sample needs on top, for each 512 × 512.
        text: of the text encoder, where it can be trained.
    """

    workspace: float
    weights_a_rank: Mapping[Layers, int]
    saved: float
    saved_at_512: Mapping[AdapterKind, Mapping[PassKind, float]]
    saved_of_weights: Mapping[AdapterKind, Mapping[PassKind, float]]
    backward_at_512: float
    prompt_share: float = 0.0
    text: TextMemory | None = None

    def training_bytes(
        self, parameters: TrainingParameters, samples: int, *, checkpointing: bool
    ) -> int:
        """What a job needs beside the weights with so many samples in one pass, bytes.

        What is kept and computed of a sample takes twice as much in full precision.
        """
        backward = self.backward_at_512 * _share(parameters) * _GIB * _precision(parameters)
        per_sample = self.saved_bytes(parameters, checkpointing=checkpointing) + int(backward)
        if self.text is not None and parameters.train_text_encoder:
            per_sample += int(self.text.saved * _GIB)
        once = self.saved_of_weights_bytes(parameters, checkpointing=checkpointing)
        once += self.adapter_bytes(parameters)
        return int(self.workspace * _GIB) + once + samples * per_sample

    def adapter_bytes(self, parameters: TrainingParameters) -> int:
        """The adapter's weights with gradient and optimizer state."""
        a_rank = self.weights_a_rank[_layers(parameters)]
        if self.text is not None and parameters.train_text_encoder:
            a_rank += self.text.weights_a_rank
        return a_rank * parameters.rank * _BYTES_A_WEIGHT[parameters.optimizer]

    def saved_bytes(self, parameters: TrainingParameters, *, checkpointing: bool) -> int:
        """What one sample keeps of the UNet between forward and backward pass, bytes."""
        at_512 = self.saved_at_512[_adapter_kind(parameters)]
        share = _share(parameters) + self.prompt_share
        saved = self.saved + at_512[_pass_kind(parameters, checkpointing)] * share
        return int(saved * _GIB) * _precision(parameters)

    def saved_of_weights_bytes(self, parameters: TrainingParameters, *, checkpointing: bool) -> int:
        """What a pass keeps of the weights, whatever the samples, bytes."""
        of_weights = self.saved_of_weights.get(_adapter_kind(parameters), {})
        return int(of_weights.get(_pass_kind(parameters, checkpointing), 0.0) * _GIB)


def _layers(parameters: TrainingParameters) -> Layers:
    attention = {*TARGET_PRESETS["attn"], *TEXT_STREAM}
    return "attn" if set(parameters.target_modules) <= attention else "attn-mlp"


def _adapter_kind(parameters: TrainingParameters) -> AdapterKind:
    layers = _layers(parameters)
    if not parameters.use_dora:
        return layers
    return "dora" if layers == "attn" else "dora-mlp"


def _pass_kind(parameters: TrainingParameters, checkpointing: bool) -> PassKind:
    if checkpointing:
        return "checkpointing"
    return "dropout" if parameters.lora_dropout > 0 else "plain"


def _share(parameters: TrainingParameters) -> float:
    """Of 512 × 512 pixels."""
    return (parameters.resolution / 512) ** 2


def _precision(parameters: TrainingParameters) -> int:
    return 2 if parameters.mixed_precision == "no" else 1
