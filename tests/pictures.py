"""The pictures of the documentation, taken of a real run: `make pictures`.

A private broker, an S3 server, a receiver, the real worker with the small base model that can
draw: the demo's job, done; one that failed; one that trains while the status page is taken. Then
the report of the finished one. Everything is drawn by headless Chromium.
"""

import io
import json
import os
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.browser import Browser
from tests.live_worker import Site, eventually
from worker.client.publishing import LoraJobClient
from worker.demo.backend import (
    MEDIA_BUCKET,
    PARAMETERS,
    PICTURES,
    RESULTS_BUCKET,
    make_catalogue,
    upload,
)
from worker.demo.hatched import draw_hatched
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Receiver
from worker.demo.s3_server import S3Server

TARGET = Path("docs/pictures")

#: Where the worker shows itself meanwhile.
PORT = 18_080

#: CSS pixels of a picture, and how many colours it keeps, so that it stays below 150 kB.
WIDTH, HEIGHT, COLOURS = 1100, 1010, 128


def main() -> None:
    """Take them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    TARGET.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        RabbitMQNode(Path(name) / "rabbitmq") as node,
        S3Server() as s3,
        Receiver() as receiver,
    ):
        folder = Path(name)
        catalogue = make_catalogue(folder)
        site = Site(node.url, s3, MEDIA_BUCKET, RESULTS_BUCKET, receiver, folder, catalogue)
        images = upload(site.client, draw_hatched(folder / "pictures", PICTURES))
        settings = {
            "HTTP_PORT": str(PORT),
            "DEFAULT_BASE_MODEL": "demo",
            "LEASE_TERM_SECONDS": "180",
            "LEASE_RENEW_SECONDS": "30",
        }
        with (
            LoraJobClient(node.url) as jobs,
            site.worker("-m", "worker.cli", "run", **settings),
            Browser(WIDTH, HEIGHT) as browser,
        ):
            told = {"webhook_url": receiver.url, "tags": ["hatched", "shapes"]}
            done = jobs.submit(style_id=10, images=images, parameters=PARAMETERS, **told)
            missing = [f"s3://{MEDIA_BUCKET}/training/11/{n}.jpg" for n in range(2)]
            lost = jobs.submit(style_id=11, images=missing, **told)
            for job_id in (done, lost):
                site.wait_for_end(job_id, 1200)
            running = jobs.submit(style_id=12, images=images, parameters=PARAMETERS, **told)
            eventually(lambda: percent(site, running) >= 40, "the job is well on its way", 1200)
            browser.open(f"http://127.0.0.1:{PORT}/")
            browser.wait_for("document.body.innerText.includes('training')")
            time.sleep(3)  # the page asks anew every second or two
            take(browser, TARGET / "status.png")

            report = folder / "report.html"
            report.write_bytes(site.objects("models/style_10/report.html").popitem()[1])
            browser.open(report.as_uri())
            take(browser, TARGET / "report.png")


def percent(site: Site, job_id: str) -> int:
    """How far a job is, as its receiver knows."""
    reports = [e.json["progress"] for e in site.journal(job_id) if e.event == "progress"]
    return int(reports[-1]["progress_percent"]) if reports else 0


def take(browser: Browser, path: Path) -> None:
    """What a person sees of the page first, in few colours."""
    browser.screenshot(path)
    with Image.open(io.BytesIO(path.read_bytes())) as whole:
        seen = whole.convert("RGB").crop((0, 0, WIDTH, min(HEIGHT, whole.height)))
    seen.quantize(COLOURS).save(path, optimize=True)
    print(json.dumps({"picture": str(path), "bytes": path.stat().st_size, "size": seen.size}))


if __name__ == "__main__":
    main()
