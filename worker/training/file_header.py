"""What do readers of a kohya file want to know of the training? `ss_*` and `modelspec.*` entries.

Nothing here depends on when, where or under which id the job ran: equal adapters are equal files.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from worker.contract.pipe import TrainCommand
from worker.training.step import Lesson

#: Tags of the captions that are counted in a header, the most frequent ones.
_TAGS = 200

#: Side of the thumbnail, pixels, as the model specification recommends, and its JPEG quality.
_THUMBNAIL_SIDE = 256
_THUMBNAIL_QUALITY = 80


def training_facts(
    command: TrainCommand, lesson: Lesson, captions: Iterable[str]
) -> dict[str, str]:
    """What `export_adapter` is told of the training: each a `ss_<name>` as kohya's trainer has it.

    Args:
        command: the job.
        lesson: the plan and the data.
        captions: of the pictures that were trained on.
    """
    rules, plan = command.parameters, lesson.plan
    facts = {
        "learning_rate": rules.learning_rate,
        "lr_scheduler": rules.lr_scheduler,
        "lr_warmup_steps": rules.lr_warmup_steps,
        "optimizer": rules.optimizer,
        "num_epochs": plan.total_epochs,
        "epoch": plan.total_epochs,
        "steps": plan.total_steps,
        "max_train_steps": plan.total_steps,
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
