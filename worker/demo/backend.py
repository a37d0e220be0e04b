"""The demo's backend: what a product around the worker has and does before a job begins."""

from pathlib import Path
from typing import Any

from worker.client.publishing import LoraJobClient
from worker.demo.tiny_base_model import make_base_model

#: The style that the demo trains.
STYLE_ID = 10

#: Pictures that the demo draws.
PICTURES = 8

#: Buckets of the demo: one for the pictures, one for the results.
MEDIA_BUCKET, RESULTS_BUCKET = "stylelicense-media", "stylelicense-models"

#: The base model's folder, beside the catalogue.
MODEL_FOLDER = "base-model"

#: Training parameters: small pictures, so that a CPU needs well under a minute.
PARAMETERS = {"epochs": 8, "learning_rate": 1e-3, "resolution": 64, "mixed_precision": "no"}


def make_catalogue(folder: Path) -> Path:
    """Make a small random base model in `folder`, and the catalogue that names it `demo`."""
    make_base_model(folder / MODEL_FOLDER)
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
