"""A worker as an operator runs it, and a backend as one that publishes to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pika

from tests.canaries import CANARIES
from tests.json_lines import json_lines
from worker.demo.receiver import Received, Receiver
from worker.demo.s3_server import S3Server

#: The workers' token in the tests; no log line and no object may show it.
TOKEN = CANARIES["INTERNAL_API_TOKEN"]

#: How long anything may take before a test gives up, seconds.
PATIENCE_SECONDS = 180.0


@dataclass
class Site:
    """A broker, a store with its buckets, a receiver: what one test's workers work with."""

    broker_url: str
    s3: S3Server
    media: str
    results: str
    receiver: Receiver
    folder: Path
    catalogue: Path
    queue: str = "model_training"
    queue_type: str = "classic"

    def environment(self, **settings: str) -> dict[str, str]:
        """What an operator would set; quick, so that a test is."""
        return {
            **os.environ,
            **self.s3.environment,
            "RABBITMQ_URL": self.broker_url,
            "RABBITMQ_QUEUE": self.queue,
            "S3_BUCKET": self.results,
            "INTERNAL_API_TOKEN": TOKEN,
            "WEBHOOK_ALLOWED_HOSTS": self.receiver.host,
            "WEBHOOK_TIMEOUT_SECONDS": "2",
            "WEBHOOK_RETRY_SECONDS": "0.5,1",
            "JOB_RETRY_SECONDS": "0.5",
            "PARKED_SECONDS": "1",
            "PROGRESS_INTERVAL_SECONDS": "0.2",
            "LEASE_TERM_SECONDS": "4",
            "LEASE_RENEW_SECONDS": "1",
            "BASE_MODELS_FILE": str(self.catalogue),
            "DEFAULT_BASE_MODEL": "tiny",
            "WORK_DIR": str(self.folder / "work"),
            "HOME": str(self.folder),
            **settings,
        }

    @contextlib.contextmanager
    def worker(
        self, *command: str, name: str = "worker", **settings: str
    ) -> Iterator["LiveWorker"]:
        """A running worker; with a stand-in trainer unless told otherwise."""
        worker = LiveWorker(
            command or ("-m", "tests.standin_worker"),
            self.environment(**settings),
            self.folder / f"{name}.log",
        )
        try:
            yield worker
        finally:
            worker.end()

    @cached_property
    def client(self) -> Any:
        """A boto3 client of the store; to make one takes a tenth of a second."""
        return self.s3.client()

    # --- as a backend

    def put_picture(self, key: str, body: bytes = b"a picture") -> str:
        """Put a picture into the media bucket; its address."""
        self.client.put_object(Bucket=self.media, Key=key, Body=body)
        return f"s3://{self.media}/{key}"

    def message(self, job_id: str | None = None, **changes: Any) -> dict[str, Any]:
        """A valid job; `None` takes a field out."""
        message = {
            "job_id": job_id or str(uuid.uuid4()),
            "style_id": 10,
            "webhook_url": self.receiver.url,
            "parameters": {"max_train_steps": 5},
            **changes,
        }
        if "image_urls" not in message and "data" not in message:
            message["image_urls"] = [self.put_picture("training/10/a.jpg")]
        return {name: value for name, value in message.items() if value is not None}

    def connect(self) -> pika.BlockingConnection:
        """A connection to the broker, which may have much to do, and was there a moment ago."""
        parameters = pika.URLParameters(self.broker_url)
        parameters.connection_attempts, parameters.retry_delay = 3, 1
        parameters.socket_timeout = parameters.stack_timeout = PATIENCE_SECONDS
        return pika.BlockingConnection(parameters)

    def publish(
        self,
        message: dict[str, Any] | bytes,
        *,
        kind: type[pika.BasicProperties] = pika.BasicProperties,
        **properties: Any,
    ) -> None:
        """Declare the queue without arguments and publish, as backends do."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        connection = self.connect()
        channel = connection.channel()
        self._declare(channel)
        channel.confirm_delivery()
        channel.basic_publish(
            "",
            self.queue,
            body,
            kind(content_type="application/json", delivery_mode=2, **properties),
        )
        connection.close()

    def declare_queue(self) -> None:
        """Have the main queue there before anybody publishes."""
        connection = self.connect()
        self._declare(connection.channel())
        connection.close()

    def _declare(self, channel: Any) -> None:
        """As backends do, without arguments; a quorum queue is the operator's doing."""
        kind = {"x-queue-type": self.queue_type} if self.queue_type != "classic" else None
        channel.queue_declare(queue=self.queue, durable=True, arguments=kind)

    def queue_sizes(self, *names: str) -> list[int]:
        """Ready messages in each queue; 0 for one that does not exist."""
        sizes = []
        connection = self.connect()
        channel = connection.channel()
        for name in names:
            if not channel.is_open:
                channel = connection.channel()
            try:
                sizes.append(channel.queue_declare(name, passive=True).method.message_count)
            except pika.exceptions.ChannelClosedByBroker:
                sizes.append(0)
        connection.close()
        return sizes

    def listeners(self, queue: str) -> int:
        """Consumers of a queue."""
        connection = self.connect()
        declared = connection.channel().queue_declare(queue, passive=True)
        connection.close()
        return int(declared.method.consumer_count)

    def take(self, queue: str) -> tuple[dict[str, Any], bytes] | None:
        """Headers and body of the next message of a queue, taken off it."""
        connection = self.connect()
        method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
        connection.close()
        return None if method is None else (dict(properties.headers or {}), body)

    # --- as a receiver and as somebody who looks into the bucket

    def journal(self, job_id: str) -> list[Received]:
        """What arrived for one job, in order."""
        return [
            entry
            for entry in self.receiver.journal
            if entry.json and entry.json.get("job_id") == job_id
        ]

    def wait_for_end(self, job_id: str, seconds: float = PATIENCE_SECONDS) -> Received:
        """The job's terminal event."""

        def ended(journal: Sequence[Received]) -> bool:
            return any(e.event != "progress" and e.json["job_id"] == job_id for e in journal)

        self.receiver.wait_for(ended, seconds)
        return next(e for e in self.journal(job_id) if e.event != "progress")

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """All objects of the results bucket below `prefix`; a worker may delete some meanwhile."""
        client, found = self.client, {}
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.results, Prefix=prefix)
        for item in (item for page in pages for item in page.get("Contents", [])):
            with contextlib.suppress(client.exceptions.NoSuchKey):
                answer = client.get_object(Bucket=self.results, Key=item["Key"])
                found[item["Key"]] = answer["Body"].read()
        return found


class LiveWorker:
    """A worker process and its log."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log_file = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=out, stderr=out
            )

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Log lines so far, those of one event if given."""
        return [line for line in json_lines(self.log_file) if event in (None, line["event"])]

    def wait_for_log(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for the `count`-th line of an event with these fields."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log(event) if fields.items() <= line.items()]

        eventually(lambda: len(found()) >= count, f"{count} × {event} {fields}")
        return found()[count - 1]

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Exit status."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Drain, then kill."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def eventually(
    condition: Callable[[], Any],
    what: str = "condition",
    seconds: float = PATIENCE_SECONDS,
    every_seconds: float = 0.05,
) -> Any:
    """Wait until `condition()` is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_seconds)
    raise TimeoutError(f"not within {seconds:g} s: {what}")
