"""How log lines are written: structlog, JSON or console, to stderr, and without secrets."""

import json
import logging
import sys
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

from worker.contract.text import printable
from worker.observability.redaction import Redactor

#: Name of the logger that every line of our own goes through.
_OURS = "lora-worker"

#: Longest text and most items of a field, and longest line; characters. What strangers send may
#: end up in a line, and whoever collects lines has limits of its own.
MAX_TEXT, MAX_ITEMS, MAX_LINE = 16_000, 100, 60_000


def configure_logging(
    level: str, renderer: Literal["json", "console"], secrets: Iterable[str] = ()
) -> None:
    """Send every log line of this process, ours and the libraries', to stderr.

    Ours are written from `level` on, those of botocore, urllib3 and the rest from WARNING on,
    pika's from CRITICAL on unless its level is set. Tracebacks show no local variables, and
    uncaught exceptions of any thread become log lines too, since Python's own report of them would
    show whatever their text holds. May be called again: the last call counts.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        renderer: `json`, one object a line; `console`, for a person.
        secrets: values that must not appear in any line, whatever field they are in.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Handler(sys.stderr)
    handler.setFormatter(_formatter(renderer, shared, Redactor(secrets)))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(level)
    # A lost connection is one event of ours, with its reason. The library writes several lines and
    # stack traces at ERROR for each; they are kept to those who set its level themselves.
    if logging.getLogger("pika").level == logging.NOTSET:
        logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=lambda *_: logging.getLogger(_OURS),
        cache_logger_on_first_use=False,
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def job_context(job_id: str, style_id: int) -> AbstractContextManager[None]:
    """Bind a job to every line that is logged inside of the `with` block, on this thread."""
    return structlog.contextvars.bound_contextvars(job_id=job_id, style_id=style_id)


def _formatter(
    renderer: Literal["json", "console"], shared: list[Processor], redact: Redactor
) -> logging.Formatter:
    last: list[Processor]
    if renderer == "json":
        last = [
            structlog.processors.format_exc_info,
            _shorten,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    else:
        last = [
            _make_plain,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The default draws tracebacks with rich, local variables included.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return _RedactingFormatter(
        redact,
        foreign_pre_chain=[*shared, _name_the_library],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Redacts the finished line: nothing that ends up in it can be overlooked."""

    def __init__(self, redact: Redactor, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line = self._redact(super().format(record))
        if len(line) <= MAX_LINE:
            return line
        about = {"event": "log_line_too_long", "level": "warning", "logger": record.name}
        return json.dumps({**about, "characters": len(line), "begins": line[:1000]})


class _Handler(logging.StreamHandler[Any]):
    """Says that a line could not be written, without the arguments that the default prints."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class' name
        kind = getattr(sys.exc_info()[0], "__name__", "unknown")
        lost = {"event": "log_line_lost", "level": "error", "logger": record.name, "error": kind}
        try:
            self.stream.write(json.dumps(lost) + "\n")
        except (OSError, ValueError):
            return  # stderr itself is gone


def _name_the_library(logger: Any, method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    return event


def _shorten(logger: Any, method: str, event: EventDict) -> EventDict:
    return {name: _short(value) for name, value in event.items()}


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    if isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        return [*value[:MAX_ITEMS], f"and {len(value) - MAX_ITEMS} more"]
    return value


def _make_plain(logger: Any, method: str, event: EventDict) -> EventDict:
    """A line for a terminal: what a stranger sent neither colours it nor forges another."""
    return {
        name: printable(value, MAX_TEXT) if isinstance(value, str) else _short(value)
        for name, value in event.items()
    }


def _to_json(event: Any, **arguments: Any) -> str:
    # Keys that are not text, or a value that refers to itself, must not lose the line.
    try:
        return json.dumps(event, ensure_ascii=False, **arguments)
    except (TypeError, ValueError):
        return json.dumps({str(k): repr(v) for k, v in event.items()}, ensure_ascii=False)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log = structlog.get_logger()
    log.critical("uncaught_exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None or issubclass(arguments.exc_type, SystemExit):
        return
    error = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    thread = arguments.thread.name if arguments.thread else None
    structlog.get_logger().critical("uncaught_exception", thread=thread, exc_info=error)
