"""What becomes of any message body: an order, or a refusal that is safe to say, log and keep."""

import json
import logging
import re
import sys
from types import SimpleNamespace
from typing import Any

import structlog
from pika.spec import BasicProperties

from worker.broker.delivery import Delivery
from worker.contract.base_model import BaseModelEntry
from worker.contract.captions import MAX_CAPTION
from worker.contract.errors import MAX_MESSAGE, InvalidJob
from worker.contract.job import JOB_ID_PATTERN
from worker.contract.pipe import TrainCommand, parse_command
from worker.jobs.intake import Intake
from worker.observability.logging import configure_logging
from worker.storage.keys import JobKeys, StyleKeys
from worker.webhooks.allow_list import WebhookAllowList

#: The one receiver that is allowed.
HOST = "api.example.com"

#: Longest body of a `failed` webhook, headers of a dead letter and log line, bytes. The sentence
#: is at most four bytes a character, or six where JSON escapes it.
MAX_EVENT, MAX_HEADERS, MAX_LINE = 32 * 1024, 8 * 1024, 64 * 1024

_BASE = BaseModelEntry(name="tiny", location="nowhere")


class Door:
    """Reads bodies as a worker does, up to the store, and looks at all that follows."""

    def __init__(self) -> None:
        self._intake = Intake(
            record=self._record,
            catalogue={"tiny": _BASE},
            default_base_model="tiny",
            allow_list=WebhookAllowList([HOST], require_https=True),
            webhook_base_url=None,
            max_images=1000,
        )

    def __call__(self, body: bytes, message_id: str | None = None) -> str:
        """How it ended, in a word. Raises if a promise is broken."""
        delivery = Delivery(
            slot=0,
            generation=1,
            delivery_tag=1,
            queue="model_training",
            body=body,
            message_id=message_id,
            headers={},
            redelivered=False,
            content_type=None,
            received_at=0.0,
        )
        try:
            order = self._intake.read(delivery)
        except InvalidJob as error:
            return self._refused(error, delivery)
        self._accepted(order)
        return "accepted"

    def _accepted(self, order: Any) -> None:
        job = order.job
        _expect(re.fullmatch(JOB_ID_PATTERN, job.job_id), "the job's id is plain")
        _expect_keys(job.job_id, job.style_id)
        if order.base is not None:
            _expect(_host_of(order.base) == HOST, "the receiver is allowed")
        _log_line("message_fields_ignored", fields=list(order.ignored_fields))
        command = TrainCommand(
            job_id=job.job_id,
            style_id=job.style_id,
            parameters=job.parameters,
            seed=job.seed,
            base_model=_BASE,
            images=[],
            output_dir="/out",
            checkpoint_dir="/checkpoints",
            trigger_word=job.trigger_word,
        )
        _expect(parse_command(command.line()) == command, "the trainer reads what was meant")
        _expect(0 <= job.seed < 2**63, "the seed is one")
        _expect(len(job.template_caption()) <= MAX_CAPTION, "a caption has an end")

    def _refused(self, error: InvalidJob, delivery: Delivery) -> str:
        _expect(error.message.isprintable(), "the sentence can be printed")
        _expect(len(error.message) <= MAX_MESSAGE, "the sentence has an end")
        job_id, result = self._intake.refusal(error, delivery)
        _expect(re.fullmatch(JOB_ID_PATTERN, job_id), "the id is plain")
        headers: dict[str, Any] = {"x-lora-job-id": job_id, "x-lora-message": error.message[:1000]}
        encoded = b"".join(BasicProperties(headers=headers, message_id=job_id).encode())
        _expect(len(encoded) <= MAX_HEADERS, "the dead letter's headers fit")
        _log_line("job_refused", reason=error.message, job_id=job_id, style_id=error.style_id)
        if result is None:
            return "refused"
        _expect_keys(job_id, result.style_id)
        _expect(result.webhook_base and _host_of(result.webhook_base) == HOST, "told the allowed")
        event = result.event_body.encode()
        _expect(len(event) <= MAX_EVENT, "the webhook has an end")
        _expect(json.loads(event)["error_code"] == "INVALID_JOB", "the webhook is JSON")
        _expect(len(result.body()) <= 2 * MAX_EVENT, "the record has an end")
        return "refused and told"

    @staticmethod
    def _record(_job_id: str) -> Any:
        return SimpleNamespace(result=lambda: None, lease=lambda: None)


def _expect(truth: object, what: str) -> None:
    if not truth:
        raise AssertionError(f"not so: {what}")


def _expect_keys(job_id: str, style_id: int) -> None:
    """Both prefixes are below their own folder, as any server and any path would read them."""
    for key, folder in (
        (JobKeys("b", job_id).lease.key, "jobs/"),
        (StyleKeys("b", style_id).job_prefix(job_id).child("x").key, "models/style_"),
    ):
        _expect(key.startswith(folder), "the key is below its folder")
        _expect(not {".", "..", ""} & set(key.split("/")), "no part of the key climbs")


def _host_of(base: str) -> str:
    # As curl and browsers do: up to the first of these, behind the last @.
    authority = re.split(r"[/\\?#]", base.partition("://")[2], maxsplit=1)[0]
    return authority.rpartition("@")[2].removesuffix(":443").lower()


class _Kept(logging.Handler):
    """Keeps the last line as the worker's own formatter writes it."""

    line = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.line = self.format(record)


_kept = _Kept()


def log_here() -> None:
    """Write the worker's log lines to nowhere but the door."""
    configure_logging("INFO", "json")
    root = logging.getLogger()
    _kept.setFormatter(root.handlers[-1].formatter)
    root.handlers = [_kept]
    # A fault of the campaign itself is to be seen.
    sys.excepthook = sys.__excepthook__


def _log_line(event: str, **fields: Any) -> None:
    if logging.getLogger().handlers != [_kept]:
        return
    structlog.get_logger().warning(event, **fields)
    line = _kept.line.encode()  # raises for what is not Unicode
    _expect(len(line) <= MAX_LINE, "the log line has an end")
    _expect(b"\n" not in line, "it is one line")
    _expect(json.loads(line)["event"] == event, "it is JSON")
