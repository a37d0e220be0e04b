"""The demo's backend: what a product around the worker has and does before a job begins."""

import shutil
from pathlib import Path
from typing import Any

from worker.client.publishing import LoraJobClient
from worker.demo.drawing_base import DRAWING_MODEL
from worker.demo.hatched import CAPTION
from worker.demo.scenes import SIDE

#: The style that the demo trains.
STYLE_ID = 10

#: Pictures that the demo draws: each shape, two of them twice.
PICTURES = 10

#: Buckets of the demo: one for the pictures, one for the results.
MEDIA_BUCKET, RESULTS_BUCKET = "stylelicense-media", "stylelicense-models"

#: The base model's folder, beside the catalogue.
MODEL_FOLDER = "base-model"

#: Training parameters: so few steps that two cores of a CPU need about a minute.
PARAMETERS = {
    "max_train_steps": 300,
    "train_batch_size": 5,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "lora_dropout": 0.0,
    "caption_dropout_rate": 0.1,
    "target_modules": [
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("proj_in", "proj_out", "conv1", "conv2"),
    ],
    "resolution": SIDE,
    "mixed_precision": "no",
    "validation_prompts": [CAPTION.format(shape=shape) for shape in ("star", "heart", "ring")],
    "num_validation_images": 1,
}


def make_catalogue(folder: Path) -> Path:
    """Put the drawing model into `folder`, and beside it the catalogue that names it `demo`."""
    shutil.copytree(DRAWING_MODEL, folder / MODEL_FOLDER, dirs_exist_ok=True)
    catalogue = folder / "base_models.toml"
    catalogue.write_text(f'[demo]\nlocation = "{MODEL_FOLDER}"\nfamily = "sd1"\n')
    return catalogue


def upload(store: Any, pictures: list[Path]) -> list[str]:
    """Make the buckets and put the pictures there; their addresses."""
    present = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for bucket in {MEDIA_BUCKET, RESULTS_BUCKET} - present:
        store.create_bucket(Bucket=bucket)
    urls = []
    for picture in pictures:
        key = f"training/{STYLE_ID}/{picture.name}"
        store.upload_file(str(picture), MEDIA_BUCKET, key)
        caption = picture.with_suffix(".txt")
        if caption.exists():
            store.upload_file(str(caption), MEDIA_BUCKET, str(Path(key).with_suffix(".txt")))
        urls.append(f"s3://{MEDIA_BUCKET}/{key}")
    return urls


def publish(broker_url: str, job_id: str, urls: list[str], webhook_base: str) -> None:
    """Have the style trained, as a backend does."""
    message = {
        "task_id": job_id,
        "type": "model_training",
        "data": {
            "style_id": STYLE_ID,
            "images": urls,
            "tags": ["hatched", "shapes"],
            "parameters": PARAMETERS,
        },
        "webhook_url": f"{webhook_base}/api/webhooks/training/{STYLE_ID}/status",
    }
    with LoraJobClient(broker_url) as client:
        client.publish(message)
