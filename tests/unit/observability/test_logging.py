"""Log lines say what happened, to which job, and never a secret."""

import base64
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest
import requests
import structlog

from tests.canaries import CANARIES, leaks
from worker.observability.logging import configure_logging, job_context
from worker.settings import load_settings
from worker.storage.s3_client import connect

#: With characters that JSON, Python and addresses each escape in their own way.
SECRET = 'p"a\\s/s wörd+&%'
TOKEN = "very-secret-token"


class Lines:
    """What has been written to stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    config = structlog.get_config()
    pika = logging.getLogger("pika")
    pika_level = pika.level
    pika.setLevel(logging.WARNING)  # else it is silenced
    yield Lines(capsys)
    pika.setLevel(pika_level)
    root.handlers[:], sys.excepthook, threading.excepthook = kept[0], kept[2], kept[3]
    root.setLevel(kept[1])
    logging.captureWarnings(False)
    structlog.configure(**config)
    structlog.contextvars.clear_contextvars()


def log_every_way() -> None:
    """Put both secrets wherever a careless line might have them."""
    log = structlog.get_logger()
    log.info("plain", token=TOKEN, password=SECRET)
    log.info(f"in_the_event {TOKEN} {SECRET}")
    log.info("nested", deep={"list": [{"headers": {"Authorization": f"Bearer {TOKEN}"}}, SECRET]})
    log.info("as_key", deep={TOKEN: {SECRET: 1}})
    log.info("as_bytes", body=f"{TOKEN} {SECRET}".encode(), text=repr(SECRET))
    log.info("escaped", body=json.dumps({"password": SECRET}), again=json.dumps(json.dumps(SECRET)))
    log.info("object", value=ValueError(f"{TOKEN} {SECRET}"))
    log.info("address", url=f"amqp://guest:{quote(SECRET, safe='')}@broker:5672/%2F")
    log.info("unknown_password", url="amqps://somebody:not-known-before@broker/vhost?x=1")
    log.info("basic", header=base64.b64encode(TOKEN.encode()).decode())
    with job_context("job-" + TOKEN, 10):
        log.info("in_the_context")
    try:
        raise_with_locals()
    except RuntimeError:
        log.exception("failed", url=f"https://x/?token={TOKEN}")
    logging.getLogger("pika").error("closed: %s", SECRET, exc_info=False)
    logging.getLogger("urllib3").warning("retrying %r", {"Authorization": TOKEN})


def raise_with_locals() -> None:
    local_that_nobody_logged = "value-of-a-local"
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(f"{TOKEN}, {len(local_that_nobody_logged)}") from error


@pytest.mark.parametrize("renderer", ["json", "console"])
def test_no_secret_appears_anywhere(lines: Lines, renderer: Any) -> None:
    configure_logging("DEBUG", renderer, [SECRET, TOKEN])
    log_every_way()
    text = lines.text
    spelled = {
        TOKEN,
        base64.b64encode(TOKEN.encode()).decode().rstrip("="),
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        quote(SECRET, safe=""),
        "a\\\\s/s w",
        "not-known-before",
        "value-of-a-local",
    }
    assert [spelling for spelling in spelled if spelling in text] == []
    assert text.count("[redacted]") >= 20
    for event in ("plain", "nested", "as_key", "as_bytes", "failed", "retrying"):
        assert event in text


def test_every_json_line_stays_json(lines: Lines) -> None:
    configure_logging("DEBUG", "json", [SECRET, TOKEN])
    log_every_way()
    assert len(lines.rows) == 14
    assert all({"event", "level", "timestamp"} <= row.keys() for row in lines.rows)


def test_a_line_has_its_fields_and_its_job(lines: Lines) -> None:
    configure_logging("INFO", "json")
    with job_context("job-1", 10):
        structlog.get_logger().info("stage_ended", stage="caching", seconds=1.5)
    structlog.get_logger().debug("not_written")
    structlog.get_logger().warning("afterwards")
    first, second = lines.rows
    timestamp = first.pop("timestamp")
    assert timestamp.endswith("Z")
    assert "T" in timestamp
    assert first == {
        "event": "stage_ended",
        "level": "info",
        "stage": "caching",
        "seconds": 1.5,
        "job_id": "job-1",
        "style_id": 10,
    }
    assert "job_id" not in second


def test_a_job_is_bound_to_its_thread_alone(lines: Lines) -> None:
    configure_logging("INFO", "json")
    bound, both = threading.Event(), threading.Event()

    def other() -> None:
        bound.wait(30)
        structlog.get_logger().info("other")
        both.set()

    thread = threading.Thread(target=other)
    thread.start()
    with job_context("job-1", 10):
        bound.set()
        both.wait(30)
        structlog.get_logger().info("mine")
    thread.join()
    assert [(row["event"], row.get("job_id")) for row in lines.rows] == [
        ("other", None),
        ("mine", "job-1"),
    ]


def test_libraries_speak_from_warning_on_and_are_named(lines: Lines) -> None:
    configure_logging("DEBUG", "json")
    for name in ("pika", "urllib3.connectionpool", "botocore"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble with %s", "it")
    warnings.warn("old habit", UserWarning, stacklevel=1)
    assert [(row["logger"], row["level"]) for row in lines.rows] == [
        ("pika", "warning"),
        ("urllib3.connectionpool", "warning"),
        ("botocore", "warning"),
        ("py.warnings", "warning"),
    ]
    assert lines.rows[0]["event"] == "trouble with it"


def test_pika_is_silent_unless_somebody_has_set_its_level(lines: Lines) -> None:
    logging.getLogger("pika").setLevel(logging.NOTSET)
    configure_logging("DEBUG", "json")
    logging.getLogger("pika.adapters").error("a lost connection, in many lines")
    assert lines.rows == []


def test_an_uncaught_exception_is_a_redacted_line(lines: Lines) -> None:
    configure_logging("INFO", "json", [TOKEN])

    def fail() -> None:
        raise RuntimeError(TOKEN)

    thread = threading.Thread(target=fail, name="events")
    thread.start()
    thread.join()
    try:
        fail()
    except RuntimeError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    assert TOKEN not in lines.text
    assert [row["event"] for row in lines.rows] == ["uncaught_exception"] * 2
    assert lines.rows[0]["thread"] == "events"
    assert "RuntimeError: [redacted]" in lines.rows[1]["exception"]


def test_a_line_that_cannot_be_written_leaks_nothing(lines: Lines) -> None:
    logging.getLogger().handlers.clear()  # pytest's own would raise
    configure_logging("INFO", "json", [TOKEN])
    logging.getLogger("pika").error("%d connections", TOKEN)
    assert TOKEN not in lines.text
    assert lines.rows[0]["event"] == "log_line_lost"


def test_odd_values_do_not_lose_the_line(lines: Lines) -> None:
    configure_logging("INFO", "json")
    loop: dict[str, Any] = {}
    loop["self"] = loop
    structlog.get_logger().info("odd", loop=loop)
    structlog.get_logger().info("odder", keys={(1, 2): 3}, lone="\udc80", thing=object())
    assert [row["event"].strip("'") for row in lines.rows] == ["odd", "odder"]


def test_many_threads_write_whole_lines(lines: Lines) -> None:
    configure_logging("INFO", "json", [TOKEN])

    def write(number: int) -> None:
        for count in range(50):
            structlog.get_logger().info("line", thread=number, count=count, token=TOKEN)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = {(row["thread"], row["count"]) for row in lines.rows}
    assert len(seen) == len(lines.rows) == 400


def test_configuring_again_does_not_double_the_lines(lines: Lines) -> None:
    configure_logging("INFO", "console")
    configure_logging("ERROR", "json")
    structlog.get_logger().info("unwanted")
    structlog.get_logger().error("once")
    assert [row["event"] for row in lines.rows] == ["once"]


def test_a_line_has_an_end_whatever_a_stranger_sent(lines: Lines) -> None:
    configure_logging("INFO", "json")
    log = structlog.get_logger()
    log.warning("long", text="x" * 1_000_000, fields=["f"] * 1_000_000, at="the end")
    log.warning("deep", nested={"a": {"b": ["x" * 1_000_000]}})
    try:
        raise RuntimeError("x" * 1_000_000)
    except RuntimeError:
        log.exception("failed")
    assert all(len(line) < 61_000 for line in lines.text.splitlines())
    long, deep, failed = lines.rows
    assert long["text"].endswith("… (1000000 characters)")
    assert (len(long["fields"]), long["fields"][-1], long["at"]) == (
        101,
        "and 999900 more",
        "the end",
    )
    assert (deep["event"], deep["characters"] > 1_000_000) == ("log_line_too_long", True)
    assert deep["begins"].startswith('{"nested"')
    assert failed["exception"].startswith("Traceback")


def test_what_a_stranger_sent_forges_no_line_and_commands_no_terminal(lines: Lines) -> None:
    evil = "a\n2026-01-01 [info] all is well\x1b[2J\x9b31m\u202e"
    configure_logging("INFO", "json")
    structlog.get_logger().warning("said", text=evil)
    assert len(lines.text.splitlines()) == 1
    assert lines.rows[0]["text"] == evil
    before = len(lines.text)
    configure_logging("INFO", "console")
    structlog.get_logger().warning("said", text=evil)
    written = lines.text[before:]
    assert written.count("\n") == 1
    assert written.removesuffix("\n").isprintable()


def test_the_libraries_at_their_loudest_show_no_secret(
    lines: Lines, s3_server: Any, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CANARIES, "AWS_ACCESS_KEY_ID": "somebody"}.items():
        monkeypatch.setenv(name, value)
    configure_logging("DEBUG", "json", load_settings().secret_values)
    loud = [logging.getLogger(name) for name in ("pika", "botocore", "boto3", "urllib3")]
    levels = [one.level for one in loud]
    try:
        for one in loud:
            one.setLevel(logging.DEBUG)
        client = connect(endpoint_url=s3_server.endpoint_url)
        client.list_buckets()
        password, url = quote(CANARIES["RABBITMQ_PASSWORD"], safe=""), urlsplit(rabbitmq_url)
        login = f"{url.scheme}://nobody:{password}@{url.hostname}:{url.port}/"
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(login))
        with pytest.raises(requests.RequestException):
            requests.get(f"http://{quote(CANARIES['HF_TOKEN'])}.invalid/", timeout=1)
    finally:
        for one, level in zip(loud, levels, strict=True):
            one.setLevel(level)
    text = lines.text
    assert {"botocore", "pika", "urllib3"} <= {row["logger"].split(".")[0] for row in lines.rows}
    assert "[redacted]" in text
    assert leaks({"log": text.encode()}) == []
