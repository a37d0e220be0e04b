"""Put in place what the demo of the compose file needs: base model, buckets, pictures, jobs.

`python -m worker.demo.setup --models DIR --webhook URL [--jobs N]`; broker and store are named by
the worker's own settings.
"""

import argparse
import sys
import tempfile
import time
import uuid
from pathlib import Path

from worker.demo.backend import PICTURES, make_catalogue, publish, upload
from worker.demo.hatched import draw_hatched
from worker.settings import load_settings
from worker.storage.s3_client import connect

#: How long broker and store may take to come up, seconds.
PATIENCE_SECONDS = 120.0


def main() -> int:
    """Do it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder for the base model")
    parser.add_argument("--webhook", required=True, help="base URL of the receiver")
    parser.add_argument("--jobs", type=int, default=1, help="jobs to publish")
    arguments = parser.parse_args()
    settings = load_settings()
    if not (arguments.models / "base_models.toml").exists():
        make_catalogue(arguments.models)
    store = connect(endpoint_url=settings.s3_endpoint_url)
    with tempfile.TemporaryDirectory() as folder:
        pictures = draw_hatched(Path(folder), PICTURES)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                urls = upload(store, pictures)
                break
            except Exception as error:  # whatever a store says while it starts
                if time.monotonic() > deadline:
                    raise
                sys.stderr.write(f"waiting for the store: {type(error).__name__}\n")
                time.sleep(2)
    for _ in range(arguments.jobs):
        job_id = str(uuid.uuid4())
        publish(settings.broker_url, job_id, urls, arguments.webhook)
        sys.stdout.write(f"published job {job_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
