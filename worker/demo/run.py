"""The main job on one machine: broker, store, receiver and pictures made on the fly.

Publishes a job as a backend would, runs the real worker, and shows its progress. Ends by loading
the adapter back from the store with plain diffusers, and by measuring on samples whether the style
was learned. The last line is one JSON object.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from worker.contract.manifest import MANIFEST_FILE, REPORT_FILE
from worker.demo.backend import (
    MODEL_FOLDER,
    PICTURES,
    RESULTS_BUCKET,
    make_catalogue,
    publish,
    upload,
)
from worker.demo.drawing_base import sheet
from worker.demo.hatched import draw_hatched
from worker.demo.learned import measure
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Received, Receiver
from worker.demo.s3_server import S3Server

#: The demo's token; the receiver checks nothing, the journal shows that it arrived.
TOKEN = "demo-token"  # noqa: S105 - a demo's

#: Samples without the adapter, and with it, that the style is measured on.
SAMPLES = 16

#: The demo gives up after so many seconds.
LIMIT_SECONDS = 900.0


def run_demo(output: Path) -> int:
    """Run the demo in `output`; returns the exit status, 0 only if everything held."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _leave)
    console = Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as parts:
        console.print("drawing pictures of a style")
        pictures = draw_hatched(output / "pictures", PICTURES)
        catalogue = make_catalogue(output)

        console.print("starting a broker, a store and a receiver")
        broker_url = os.environ.get("RABBITMQ_URL") or _start_broker(parts, output)
        endpoint_url = os.environ.get("S3_ENDPOINT_URL") or _start_store(parts)
        receiver = parts.enter_context(Receiver())
        environment = _worker_environment(broker_url, endpoint_url, receiver, catalogue, output)
        store = _store_client(environment)
        urls = upload(store, pictures)

        parts.enter_context(_worker(environment, output / "worker.log"))
        job_id = str(uuid.uuid4())
        publish(broker_url, job_id, urls, receiver.url)
        console.print(f"published job {job_id}; the worker's log is {output / 'worker.log'}")
        journal = _follow(receiver, job_id, console)

        problems = journal_problems(journal)
        terminal = [entry for entry in journal if entry.event != "progress"]
        if problems or terminal[-1].event != "complete":
            for problem in problems or [json.dumps(terminal[-1].json)]:
                console.print(f"[red]{problem}")
            return 1
        complete = terminal[-1].json
        adapter_url = complete["model_url"]
        adapter = _download(store, adapter_url, output)
        scaling = load_back(output / MODEL_FOLDER, adapter)
        report_url = complete["metadata"]["report_url"]
        report = _download(store, report_url, output)
        manifest = _download(store, report_url.replace(REPORT_FILE, MANIFEST_FILE), output)
        for preview in complete["metadata"]["previews"]:
            for name in ("before", "after"):
                _download(store, preview[name], output / "previews")
    console.print(f"drawing {SAMPLES} samples without the adapter and with it")
    learned = measure(output / MODEL_FOLDER, adapter, pictures, SAMPLES)
    sheet([*learned.before, *learned.after], SAMPLES).save(output / "samples.png")

    _print_journal(journal, console)
    console.print(f"adapter: {adapter_url} (copy: {adapter}), scaling {scaling}")
    console.print(
        f"style moved {learned.moved.style:.0%} of the way from the base to the pictures; the "
        f"prompted shape is found in {learned.shapes:.0%} of the samples: {output / 'samples.png'}"
    )
    console.print(
        f"the same adapter again: BASE_MODELS_FILE={catalogue} DEFAULT_BASE_MODEL=demo "
        f"lora-worker reproduce {manifest} --pictures {output / 'pictures'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    summary = {
        "adapter_url": adapter_url,
        "job_id": job_id,
        "progress_events": len(journal) - len(terminal),
        "terminal_events": len(terminal),
        "scaling": scaling,
        "report": str(report),
        "style": learned.figures(),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(summary))
    return 0


def journal_problems(journal: list[Received]) -> list[str]:
    """What a receiver may complain about: order, gaps, more than one end."""
    events = [entry.event for entry in journal]
    percents = [
        entry.json["progress"]["progress_percent"] for entry in journal if entry.event == "progress"
    ]
    problems = []
    if [event for event in events if event != "progress"] != events[-1:]:
        problems.append(f"not exactly one terminal event, at the end: {events}")
    if not percents or percents[0] != 0:
        problems.append(f"progress does not begin at 0: {percents}")
    if percents != sorted(percents):
        problems.append(f"progress goes back: {percents}")
    if events[-1:] == ["complete"] and percents[-1:] != [100]:
        problems.append(f"progress does not end at 100: {percents}")
    return problems


def load_back(model: Path, adapter: Path) -> float:
    """Load the adapter with plain diffusers into the base model; the scale that it works at.

    Raises:
        ValueError: no layer took it, or the layers disagree.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    scales = {
        scale
        for module in pipeline.unet.modules()
        for scale in getattr(module, "scaling", {}).values()
    }
    if len(scales) != 1:
        raise ValueError(f"the adapter works at {sorted(scales)} instead of one scale")
    return float(scales.pop())


def _leave(number: int, frame: object) -> None:
    """End as an exception does: the broker, the store and the worker are stopped on the way."""
    raise SystemExit(128 + number)


def _download(store: Any, url: str, folder: Path) -> Path:
    """Fetch `s3://bucket/key` into a folder; the file, by its own name."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    folder.mkdir(exist_ok=True)
    path = folder / Path(key).name
    store.download_file(bucket, key, str(path))
    return path


def _start_broker(parts: contextlib.ExitStack, output: Path) -> str:
    node = RabbitMQNode(output.resolve() / "rabbitmq")
    node.start()
    parts.callback(node.stop)
    return node.url


def _start_store(parts: contextlib.ExitStack) -> str:
    return parts.enter_context(S3Server()).endpoint_url


def _worker_environment(
    broker_url: str, endpoint_url: str, receiver: Receiver, catalogue: Path, output: Path
) -> dict[str, str]:
    """What an operator would set."""
    return {
        **{"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret"},
        **{"AWS_DEFAULT_REGION": "us-east-1"},
        # Two threads on this small model wait for each other more than they win.
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "RABBITMQ_URL": broker_url,
        "S3_ENDPOINT_URL": endpoint_url,
        "S3_BUCKET": RESULTS_BUCKET,
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_HOSTS": receiver.host,
        "PROGRESS_INTERVAL_SECONDS": "1",
        "BASE_MODELS_FILE": str(catalogue),
        "DEFAULT_BASE_MODEL": "demo",
        "WORK_DIR": str(output.resolve() / "work"),
    }


def _store_client(environment: Mapping[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environment["S3_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


@contextlib.contextmanager
def _worker(environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """The real worker as an operator runs it, stopped by SIGTERM at the end."""
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "run"],
            env=dict(environment),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()


def _follow(receiver: Receiver, job_id: str, console: Console) -> list[Received]:
    """Show what the receiver hears until the job has ended; its journal of this job."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("queued", total=100, figures="")
        while time.monotonic() < deadline:
            journal = [e for e in receiver.journal if e.json and e.json.get("job_id") == job_id]
            for entry in journal[-1:]:
                if entry.event != "progress":
                    return journal
                progress = entry.json["progress"]
                left, loss = progress["estimated_seconds"], progress["loss"]
                figures = f"loss {loss:.4f}  {left} s left" if loss is not None else ""
                bar.update(
                    task,
                    description=progress["stage"],
                    completed=progress["progress_percent"],
                    figures=figures,
                )
            time.sleep(0.1)
    raise TimeoutError(f"the job did not end within {LIMIT_SECONDS:.0f} s; see the worker's log")


def _print_journal(journal: list[Received], console: Console) -> None:
    console.print("what the receiver got:")
    for entry in journal:
        body = entry.json
        if "progress" in body:
            progress = body["progress"]
            told = f"{progress['progress_percent']:>3} %  {progress['stage']}"
        else:
            told = body.get("model_url") or body.get("error_message")
        console.print(f"  {entry.method:<5} {entry.path}  {told}", highlight=False)
