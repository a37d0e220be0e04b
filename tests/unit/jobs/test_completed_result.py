"""What the `complete` webhook says of where things lie."""

import json

from worker.contract.job import TrainingJob
from worker.contract.pipe import FinishedEvent, OutputFile
from worker.jobs.conclusion import completed_result
from worker.jobs.record import Lease

NAMES = ("lora_weights.safetensors", "report.html", "previews/grid.png", "previews/after_00.png")
WAY = {"step": 50, "file": "previews/step_000050_00.png"}
PREVIEW = {
    **{"prompt": "x", "seed": 0, "before": "previews/before_00.png", "after": NAMES[3]},
    "along": [WAY],
}


def metadata_of(*names: str, **metadata) -> dict:
    """The webhook's metadata for a job that has left files of these names."""
    files = [OutputFile(name=name, path="", bytes=1, sha256="0" * 64) for name in names]
    finished = FinishedEvent(files=files, steps=1, epochs=1, loss=0.1, metadata=metadata)
    job = TrainingJob.model_validate(
        {"job_id": "j", "style_id": 10, "image_urls": ["s3://media/a.jpg"]}
    )
    lease = Lease(owner="me", epoch=1, fingerprint="f", attempts=1)
    result = completed_result(job, None, lease, finished, {"training": 1.0}, "results")
    assert result.files == names
    return json.loads(result.event_body)["metadata"]


def test_report_and_previews_are_named_where_they_will_lie():
    said = metadata_of(*NAMES, previews=[PREVIEW])
    folder = "s3://results/models/style_10"
    assert said["report_url"] == f"{folder}/report.html"
    assert said["preview_grid_url"] == f"{folder}/previews/grid.png"
    assert said["previews"] == [
        {
            "prompt": "x",
            "seed": 0,
            "before": f"{folder}/previews/before_00.png",
            "after": f"{folder}/previews/after_00.png",
            "along": [{"step": 50, "file": f"{folder}/previews/step_000050_00.png"}],
        }
    ]


def test_a_job_without_them_names_none():
    said = metadata_of(NAMES[0])
    assert not {"report_url", "preview_grid_url"} & set(said)
