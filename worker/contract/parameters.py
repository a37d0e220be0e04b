"""Which knobs does a job have? `parameters` of the message: names, defaults, bounds, aliases."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from worker.contract.combinations import DEFAULT_LEARNING_RATE, conflicts
from worker.contract.other_names import document_other_names
from worker.contract.target_modules import TARGET_PRESETS

#: The names that `diffusers.optimization.get_scheduler` knows and that need no further arguments.
SchedulerName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]


_Layers = (
    Literal["attn", "attn-mlp"]
    | Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]],
        Field(min_length=1, max_length=32),
    ]
)


class TrainingParameters(BaseModel):
    """The training parameters of one job. Names are diffusers' flag names.

    Out-of-range values and unknown names are refused by name; nothing is clamped or dropped.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra=document_other_names,
    )

    num_train_epochs: int = Field(
        100,
        ge=1,
        le=1000,
        validation_alias=AliasChoices("num_train_epochs", "epochs"),
        description="Passes over the pictures.",
    )
    max_train_steps: int | None = Field(
        None, ge=1, le=50_000, description="Optimizer steps; wins over the epochs."
    )
    train_batch_size: int = Field(
        1,
        ge=1,
        le=64,
        validation_alias=AliasChoices("train_batch_size", "batch_size"),
        description="Pictures in a micro-batch; at most the number of pictures.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=64, description="Micro-batches in one optimizer step."
    )
    learning_rate: float = Field(
        1e-4,
        ge=1e-7,
        le=10,
        description="Peak learning rate, at most 0.01; for `prodigy` a factor of the rate that it "
        "finds, 1.0 by default.",
    )
    lr_scheduler: SchedulerName = Field("constant", description="Learning-rate schedule.")
    lr_warmup_steps: int = Field(0, ge=0, le=50_000, description="Optimizer steps of warm-up.")
    rank: int = Field(
        16,
        ge=1,
        le=256,
        validation_alias=AliasChoices("rank", "lora_rank"),
        description="Rank of the adapter.",
    )
    lora_alpha: float = Field(
        32.0, gt=0, le=512, description="Numerator of the scale `alpha / rank`."
    )
    lora_dropout: float = Field(0.1, ge=0, le=0.9, description="Dropout before the A matrices.")
    use_dora: bool = Field(
        False, description="Also train the norm of each row of the weights (DoRA); slower."
    )
    target_modules: tuple[str, ...] = Field(
        TARGET_PRESETS["attn"],
        min_length=1,
        max_length=32,
        description="Layers with an adapter: `attn`, `attn-mlp`, or a list of module names.",
    )
    train_text_encoder: bool = Field(
        False, description="Also train an adapter in the text encoder's attention."
    )
    text_encoder_learning_rate: float | None = Field(
        None,
        ge=1e-7,
        le=1e-2,
        description="Peak learning rate of the text encoder; by default that of the UNet.",
    )
    resolution: int = Field(
        512,
        ge=64,
        le=2048,
        multiple_of=8,
        description="Side of the square picture, pixels; where it is not said, what the base "
        "model was made with (512, 768 or 1024).",
    )
    aspect_ratio_buckets: bool = Field(
        False,
        description="Train each picture near its own aspect ratio, on about as many pixels as the "
        "square has.",
    )
    random_flip: bool = Field(False, description="Mirror pictures at random.")
    center_crop: bool = Field(
        True, description="Crop the centre; false: at 4 places drawn at random, in turn."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "fp16", description="Arithmetic of the frozen base on a GPU; the adapter stays fp32."
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="Recompute activations; `auto` only when memory needs it."
    )
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "adafactor"] = Field(
        "adamw",
        description="Optimizer; `adamw8bit` and `prodigy` where the operator has installed them.",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_weight_decay: float = Field(1e-2, ge=0, le=1, description="Decoupled weight decay.")
    adam_epsilon: float = Field(1e-8, gt=0, le=1e-2, description="Term against division by 0.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000, description="Clip the gradient's norm to this; 0 is off."
    )
    snr_gamma: float | None = Field(
        None, gt=0, le=100, description="Min-SNR loss weighting; 5.0 is usual. Off by default."
    )
    noise_offset: float = Field(0.0, ge=0, le=1, description="Per-channel offset of the noise.")
    caption_dropout_rate: float = Field(
        0.0, ge=0, le=1, description="Share of samples trained with the empty prompt."
    )
    shuffle_captions: bool = Field(
        False, description="The comma-separated tags of a caption in another order each pass."
    )
    keep_tokens: int = Field(
        0, ge=0, le=75, description="First tags that stay in place; needs shuffle_captions."
    )
    with_prior_preservation: bool = Field(
        False,
        validation_alias=AliasChoices("with_prior_preservation", "prior_preservation"),
        description="Beside each picture also train one of its class, so that the base keeps what "
        "it knows of the class (DreamBooth).",
    )
    class_prompt: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="What the pictures of the class show, without the trigger word.",
    )
    prior_loss_weight: float = Field(
        1.0, gt=0, le=10, description="Weight of the loss on pictures of the class."
    )
    num_class_images: int = Field(
        100,
        ge=1,
        le=1000,
        description="Pictures of the class that the base model draws before the training, where "
        "the message has no class_images.",
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="What the UNet predicts; by default what the base model says."
    )
    seed: int | None = Field(
        None, ge=0, le=2**63 - 1, description="Seed; from the job id by default. Echoed."
    )
    validation_split: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the pictures that is held out of the training, at least one; the "
        "adapter with the lowest loss on them is the result.",
    )
    validation_steps: int | None = Field(
        None,
        ge=1,
        le=50_000,
        description="Optimizer steps between two validations; by default about a tenth of the "
        "job with validation_split, else none but before and after.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="End the training after so many validations without a lower loss; needs "
        "validation_split.",
    )
    validation_prompts: tuple[Annotated[str, Field(max_length=1000)], ...] | None = Field(
        None,
        max_length=16,
        description="Prompts for previews; by default three of the captions where previews are "
        "cheap. An empty list: none.",
    )
    num_validation_images: int = Field(
        4,
        ge=1,
        le=16,
        description="Previews of each of validation_prompts, one a seed.",
    )
    preview_points: int | None = Field(
        None,
        ge=0,
        le=8,
        description="How many times, evenly spaced, the first preview of up to 4 prompts is also "
        "drawn along the way; by default up to 3 times where that takes little of the training.",
    )
    base_model: str | None = Field(
        None, max_length=100, description="Name in the catalogue; the operator's default if none."
    )
    on_bad_image: Literal["skip", "fail"] = Field(
        "skip", description="Train without pictures that cannot be read, or fail the job."
    )
    time_limit_seconds: int | None = Field(
        None, ge=1, le=7 * 86_400, description="Longest training time; capped by the operator's."
    )
    checkpoint_seconds: int = Field(
        60, ge=1, le=3600, description="Seconds of training between two checkpoints."
    )

    @field_validator("target_modules", mode="before", json_schema_input_type=_Layers)
    @classmethod
    def _expand_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in TARGET_PRESETS:
                raise ValueError(f"must be one of {', '.join(TARGET_PRESETS)}, or a list of names")
            return TARGET_PRESETS[value]
        return value

    @field_validator("target_modules")
    @classmethod
    def _plain_module_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.replace(".", "").replace("_", "").isalnum():
                raise ValueError(f"{name!r} is not a module name such as to_q or to_out.0")
        return value

    @field_validator("keep_tokens")
    @classmethod
    def _kept_where_others_move(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("shuffle_captions"):
            raise ValueError("is for shuffle_captions, which is false; send it as true")
        return value

    @field_validator("early_stopping_patience")
    @classmethod
    def _stopped_for_pictures_never_seen(cls, value: int | None, info: ValidationInfo) -> Any:
        if value is not None and not info.data.get("validation_split"):
            raise ValueError(
                "is for validation_split, which is 0: the loss on pictures that are trained on "
                "says nothing of over-fitting"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_optimizer(cls, values: Any) -> Any:
        """Without a learning rate, each optimizer has its own."""
        if isinstance(values, dict):
            rate = DEFAULT_LEARNING_RATE.get(str(values.get("optimizer")))
            return values if rate is None else {"learning_rate": rate} | values
        return values

    @model_validator(mode="after")
    def _refuse_what_cannot_work_together(self) -> Self:
        if found := conflicts(dict(self)):
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        # The sentence is an argument: braces in it would be read as a place.
                        type=PydanticCustomError("value_error", "{sentence}", {"sentence": text}),
                        loc=(name,),
                        input=getattr(self, name),
                    )
                    for name, text in found
                ],
            )
        return self


def held_out_count(validation_split: float, pictures: int) -> int:
    """How many of `pictures` are held out: the share, at least one, never all."""
    if not validation_split:
        return 0
    return min(max(1, round(validation_split * pictures)), pictures - 1)
