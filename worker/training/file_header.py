"""What do readers of a kohya file want to know of the training? `ss_*` and `modelspec.*` entries.

Nothing here depends on when, where or under which id the job ran: equal adapters are equal files.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from worker.contract.pipe import TrainCommand
from worker.training.plan import steps_asked_for
from worker.training.step import Lesson

#: Tags of the captions that are counted in a header, the most frequent ones.
_TAGS = 200

#: Side of the thumbnail, pixels, as the model specification recommends, and its JPEG quality.
_THUMBNAIL_SIDE = 256
_THUMBNAIL_QUALITY = 80


def training_facts(
    command: TrainCommand, lesson: Lesson, captions: Iterable[str], *, step: int
) -> dict[str, str]:
    """What `export_adapter` is told of the training: each a `ss_<name>` as kohya's trainer has it.

    There `ss_steps` and `ss_epoch` are of the saved weights, `ss_max_train_steps` and
    `ss_num_epochs` of the job as it was planned (kohya-ss/sd-scripts, `train_network.py`,
    `save_model`). `ss_epoch` counts the passes begun by then, as kohya's does in the end; kohya's
    counts the finished ones where weights are saved within a pass.

    Args:
        command: the job.
        lesson: the plan and the data.
        captions: of the pictures that were trained on.
        step: optimizer steps after which the adapter was as it is exported.
    """
    rules, plan = command.parameters, lesson.plan
    planned = steps_asked_for(rules, plan.steps_per_epoch)
    facts = {
        "learning_rate": rules.learning_rate,
        "lr_scheduler": rules.lr_scheduler,
        "lr_warmup_steps": rules.lr_warmup_steps,
        "optimizer": rules.optimizer,
        "num_epochs": math.ceil(planned / plan.steps_per_epoch),
        "epoch": plan.epoch_of(step),
        "steps": step,
        "max_train_steps": planned,
        "num_train_images": plan.pictures,
        "total_batch_size": rules.train_batch_size * rules.gradient_accumulation_steps,
        "gradient_accumulation_steps": rules.gradient_accumulation_steps,
        "max_grad_norm": rules.max_grad_norm,
        "min_snr_gamma": rules.snr_gamma,
        "noise_offset": rules.noise_offset or None,
        "network_dropout": rules.lora_dropout,
        "caption_dropout_rate": rules.caption_dropout_rate,
        "resolution": rules.resolution,
        "seed": command.seed,
        "prediction_type": lesson.prediction_type,
        "tag_frequency": json.dumps(_tag_frequency(captions), ensure_ascii=False),
    }
    # Kohya's trainer writes Python's `None` where something is off.
    return {name: str(value) for name, value in facts.items()}


def _tag_frequency(captions: Iterable[str]) -> dict[str, dict[str, int]]:
    """How often each comma-separated tag occurs, under the name of the one folder of pictures."""
    counted = Counter(
        tag for caption in captions for part in caption.split(",") if (tag := part.strip())
    )
    return {"pictures": dict(counted.most_common(_TAGS))} if counted else {}


def thumbnail_entry(picture: Path) -> dict[str, str]:
    """`modelspec.thumbnail`: a small JPEG as a data URI."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    out = BytesIO()
    small.save(out, "JPEG", quality=_THUMBNAIL_QUALITY)
    encoded = base64.b64encode(out.getvalue()).decode()
    return {"modelspec.thumbnail": f"data:image/jpeg;base64,{encoded}"}
