"""What a stranger sends costs at most its own job: no worker, no queue, no log, no terminal."""

import json
import struct
from datetime import UTC, datetime

import pika
import pytest

from tests.live_worker import eventually
from worker.broker.connection import BrokerAddress
from worker.broker.inspection import look_at

#: AMQP's largest frame here, bytes; a message's headers must fit into one.
FRAME = 131_072


def goes_on(site):
    """The worker still does a good job."""
    message = site.message()
    site.publish(message)
    assert site.wait_for_end(message["job_id"]).event == "complete"


def dead_letter(site):
    eventually(lambda: site.queue_sizes("model_training.dead") == [1], "a dead letter")
    return site.take("model_training.dead")


@pytest.mark.parametrize(
    "change",
    [
        {"image_urls": ["not an address"] * 150_000},
        {"parameters": {f"unknown {n}": n for n in range(100_000)}},
        {"parameters": {"\ud800\x1b[31m\r\nX-Injected: 1": 1}},
        {"type": "x" * 3_000_000},
        {"tags": [[]] * 900_000},
    ],
    ids=["pictures", "parameters", "characters", "type", "tags"],
)
def test_a_message_made_to_be_repeated_is_repeated_in_a_few_words(site, change):
    message = site.message(**change)
    with site.worker() as worker:
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        headers, body = dead_letter(site)
        goes_on(site)
    assert end.json["error_code"] == "INVALID_JOB"
    assert len(end.body) < 32_000
    assert end.json["error_message"].isprintable()
    assert headers["x-lora-message"].isprintable()
    assert json.loads(body) == json.loads(json.dumps(message))
    assert all(len(line) < 61_000 for line in worker.log_file.read_text().splitlines())


@pytest.mark.parametrize("job_id", ["a\r\nX-Injected: 1", "../../results", "a/b", "\x1b[2J", "ä"])
def test_an_id_is_plain_enough_for_a_header_a_key_and_a_terminal(site, job_id):
    message = site.message(job_id=job_id)
    with site.worker():
        site.publish(message)
        headers, _ = dead_letter(site)
        goes_on(site)
    assert "job_id: " in headers["x-lora-message"]
    assert headers["x-lora-job-id"].startswith("sha256-")
    assert not [key for key in site.objects() if "Injected" in key or ".." in key]


@pytest.mark.parametrize("valid", [True, False])
def test_headers_that_fill_a_frame_do_not_keep_a_message_from_being_moved(site, valid):
    """Nothing can be added to them; a copy that the broker refuses would come round for ever."""
    message = site.message(**({} if valid else {"type": "another"}))
    stuffing = {"x-stuffing": "x" * (FRAME - 150)}
    with site.worker() as worker:
        site.publish(message, headers=stuffing, message_id=message["job_id"])
        end = site.wait_for_end(message["job_id"])
        assert end.event == ("complete" if valid else "failed")
        if not valid:
            assert dead_letter(site)[0]["x-lora-code"] == "INVALID_JOB"
        goes_on(site)
        assert not worker.log("job_put_off")


class OddProperties(pika.BasicProperties):
    """What pika would not write: a time after the year 9999, a name that is no text."""

    def encode(self):
        raw = b"".join(super().encode())
        then = struct.pack(">Q", int(THEN.timestamp()))
        assert raw.count(then) == raw.count(b"cl!") == 1
        return [raw.replace(then, struct.pack(">Q", 2**63)).replace(b"cl!", b"cl\xe9")]


THEN = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("valid", [True, False])
def test_headers_that_no_python_can_hold_cost_no_connection(site, valid):
    message = site.message(**({} if valid else {"type": "another"}))
    with site.worker() as worker:
        site.publish(
            message,
            headers={"when": [THEN], "cl!": "x", "CC": ["model_training"]},
            kind=OddProperties,
        )
        end = site.wait_for_end(message["job_id"])
        assert end.event == ("complete" if valid else "failed")
        goes_on(site)
        assert not worker.log("broker_lost")
        assert not worker.log("job_put_off")
    dead = look_at(BrokerAddress(site.broker_url), "model_training.dead", lambda one: one.headers)
    assert [headers["x-lora-job-id"] for headers in dead] == ([] if valid else [message["job_id"]])
    assert not any("CC" in headers for headers in dead)
    assert site.queue_sizes("model_training") == [0]


def test_pictures_of_a_bucket_that_is_not_allowed_are_not_read(site):
    message = site.message()
    with site.worker(IMAGE_ALLOWED_BUCKETS=f"elsewhere,{site.media}/others/"):
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
    assert end.json["error_code"] == "IMAGE_DOWNLOAD_FAILED"
    assert "IMAGE_ALLOWED_BUCKETS" in end.json["error_message"]


def test_another_jobs_files_are_no_pictures(site):
    site.client.put_object(Bucket=site.results, Key="models/style_99/previews/0.png", Body=b"x")
    url = f"s3://{site.results}/models/style_99/previews/0.png"
    message = site.message(image_urls=[url])
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
    assert "lies among the worker's own files" in end.json["error_message"]
