"""What a probe, a scraper and a person on call get from a running worker."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.browser import Browser
from tests.live_worker import PATIENCE_SECONDS, TOKEN, eventually
from worker.demo.receiver import Reply

OUT_OF_MEMORY = 903  # tests/standin_trainer.py's style whose training fails


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Asked:
    """The worker's pages, as a client sees them."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, **headers):
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def json(self, path):
        return json.loads(self.get(path)[1])

    def answers(self):
        try:
            return self.get("/livez")
        except OSError:
            return None

    def ready(self):
        return self.answers() and self.get("/readyz")[0] == 200


@pytest.fixture
def asked(port):
    return Asked(port)


def with_status(site, port, *command, **settings):
    return site.worker(*command, HTTP_PORT=str(port), **settings)


def test_a_worker_without_a_port_listens_to_nobody(site, asked):
    with site.worker() as worker:
        worker.wait_for_log("broker_connected", consumer="jobs")
        assert asked.answers() is None
        assert not worker.log("status_server_started")


def test_it_is_alive_and_ready_once_broker_store_and_trainer_are_there(site, port, asked):
    with with_status(site, port):
        eventually(asked.ready)
        assert asked.json("/livez") == {"ok": True, "reasons": []}
        assert asked.json("/readyz") == {"ok": True, "reasons": []}


def test_without_a_broker_it_is_alive_but_not_ready(site, port, asked):
    with with_status(site, port, RABBITMQ_URL="amqp://guest:guest@127.0.0.1:1/"):
        eventually(asked.answers)
        assert asked.get("/livez")[0] == 200
        assert asked.get("/readyz")[0] == 503
        eventually(lambda: "the broker cannot be reached" in asked.json("/readyz")["reasons"])
        assert asked.get("/readyz")[0] == 503


def test_without_a_store_it_is_alive_but_not_ready(site, port, asked):
    """And it says what it waits for: the store, not the broker, which nobody has tried."""
    with with_status(site, port, S3_ENDPOINT_URL="http://127.0.0.1:1") as worker:
        eventually(asked.answers)
        assert asked.get("/livez")[0] == 200
        status, body = asked.get("/readyz")
        assert status == 503
        assert any(reason.startswith("the store ") for reason in json.loads(body)["reasons"])
        worker.wait_for_log("store_not_reached")
        checks = asked.json("/status")["checks"]
        assert not checks["store"]["ok"]
        assert checks["store"]["detail"].startswith("the store cannot be used: ")
        assert checks["broker"] == {"ok": False, "detail": "the broker has not been asked yet"}
        assert "lora_worker_store_reachable 0.0" in asked.get("/metrics")[1]


def test_a_draining_worker_is_not_ready_and_says_so(site, port, asked):
    with with_status(site, port, "-m", "tests.standin_worker", "0.2") as worker:
        eventually(asked.ready)
        site.publish(site.message(style_id=905, parameters={"max_train_steps": 500}))
        eventually(lambda: asked.json("/status")["jobs"])
        worker.signal()
        eventually(lambda: "the worker is stopping" in asked.json("/readyz")["reasons"])
        assert asked.get("/livez")[0] == 200


def test_a_port_that_is_taken_stops_the_start_with_a_sentence(site, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        answer = subprocess.run(
            [sys.executable, "-m", "worker.cli", "run"],
            env=site.environment(HTTP_PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert answer.returncode == 64
    assert f"HTTP_PORT cannot be used: 127.0.0.1:{port} cannot be bound" in answer.stderr


def test_it_says_what_it_does_and_how_its_last_jobs_ended(site, port, asked):
    with with_status(site, port, "-m", "tests.standin_worker", "0.05"):
        eventually(asked.ready)
        good, bad = site.message(parameters={"max_train_steps": 100}), site.message(style_id=903)
        site.publish(good)
        [job] = eventually(
            lambda: [j for j in asked.json("/status")["jobs"] if len(j["curve"]) > 5]
        )
        assert (job["job_id"], job["stage"], job["slot"]) == (good["job_id"], "training", 0)
        assert 5 < job["training"]["step"] <= job["training"]["total_steps"] == 100
        site.wait_for_end(good["job_id"])
        site.publish(bad)
        site.wait_for_end(bad["job_id"])
        status = asked.json("/status")
    failed, completed = status["recent"]
    assert status["jobs"] == []
    assert (completed["job_id"], completed["outcome"]) == (good["job_id"], "completed")
    assert (completed["steps"], completed["seconds"] > 1) == (100, True)
    assert (failed["job_id"], failed["code"]) == (bad["job_id"], "GPU_OUT_OF_MEMORY")
    assert failed["message"]
    assert status["counts"] == {"completed": 1, "failed": 1, "canceled": 0}


def test_a_job_is_counted_by_outcome_stage_step_and_webhook(site, port, asked):
    with with_status(site, port):
        eventually(asked.ready)
        message = site.message(parameters={"max_train_steps": 7}, created_at=None)
        site.publish(message)
        site.wait_for_end(message["job_id"])
        refused = site.message(parameters={"rank": 0})
        site.publish(refused)
        site.wait_for_end(refused["job_id"])
        sizes = eventually(lambda: 'queue="dead"' in asked.get("/metrics")[1])
        assert sizes
        lines = asked.get("/metrics")[1].splitlines()
    for line in (
        'lora_worker_jobs_total{code="",outcome="completed"} 1.0',
        'lora_worker_jobs_total{code="INVALID_JOB",outcome="failed"} 1.0',
        'lora_worker_deliveries_total{action="Claim"} 1.0',
        'lora_worker_stage_duration_seconds_count{stage="training"} 1.0',
        'lora_worker_stage_duration_seconds_count{stage="uploading"} 1.0',
        "lora_worker_training_steps_total 7.0",
        "lora_worker_training_samples_total 7.0",
        'lora_worker_broker_connected{connection="jobs"} 1.0',
        "lora_worker_ready 1.0",
        "lora_worker_jobs_running 0.0",
        "lora_worker_store_reachable 1.0",
    ):
        assert line in lines
    delivered = 'lora_worker_webhook_duration_seconds_count{answer="delivered",event="complete"}'
    assert any(line.startswith(delivered) for line in lines)
    # What belongs to a job that runs is gone with it.
    assert not any(line.startswith("lora_worker_training_loss{") for line in lines)
    assert not any(message["job_id"] in line for line in lines), "an id in a label"


def test_of_several_jobs_at_one_trainer_each_is_shown_and_they_are_counted(site, port, asked):
    endless = {"max_train_steps": 50_000}
    with with_status(site, port, PACK_SLOTS="4") as worker:
        eventually(asked.ready)
        messages = [site.message(style_id=s, parameters=endless) for s in (10, 11, 12)]
        for message in messages:
            site.publish(message)
        for message in messages:
            worker.wait_for_log("stage_started", stage="training", job_id=message["job_id"])
        status = asked.json("/status")
        assert (status["worker"]["slots"], status["worker"]["training"]) == (4, 3)
        assert {job["job_id"] for job in status["jobs"]} == {m["job_id"] for m in messages}
        assert {job["slot"] for job in status["jobs"]} == {0, 1, 2}
        assert status["checks"]["trainer"]["detail"] == "1 of 1 up, 3 of 4 slots train"
        lines = asked.get("/metrics")[1].splitlines()
    for line in (
        "lora_worker_slots 4.0",
        "lora_worker_jobs_running 3.0",
        "lora_worker_jobs_training 3.0",
    ):
        assert line in lines


def test_no_page_shows_a_secret(site, port, asked):
    with with_status(site, port):
        eventually(asked.ready)
        for path in ("/", "/status", "/metrics", "/livez", "/readyz", "/nothing"):
            body = asked.get(path)[1]
            assert TOKEN not in body
            assert "guest:guest" not in body
            assert site.s3.environment["AWS_SECRET_ACCESS_KEY"] not in body


def test_only_get_and_head_of_known_paths_are_answered(site, port, asked):
    with with_status(site, port):
        eventually(asked.answers)
        assert asked.get("/../etc/passwd")[0] == 404
        assert asked.get("/metrics?x=1")[0] == 200
        request = urllib.request.Request(asked.url + "/livez", data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 501


def test_a_browser_shows_progress_the_loss_curve_and_the_last_jobs(site, port, asked, tmp_path):
    with (
        with_status(site, port, "-m", "tests.standin_worker", "0.1") as worker,
        Browser() as browser,
    ):
        eventually(asked.ready)
        browser.open(asked.url + "/")
        browser.wait_for("document.body.innerText.includes('Ready, waiting for jobs')")
        markup = "<img src=x onerror=alert(1)>"
        bad = site.message(image_urls=[f"s3://{site.media}/{markup}.jpg"])
        long = site.message(parameters={"max_train_steps": 600})
        site.publish(bad)
        site.wait_for_end(bad["job_id"])
        site.publish(long)
        browser.wait_for("document.querySelector('.job svg path')")
        first = browser.evaluate("document.querySelector('.percent').innerText")
        browser.wait_for(f"document.querySelector('.percent').innerText != '{first}'")
        browser.screenshot(tmp_path / "desktop.png")
        text = browser.text()
        assert "Working: training" in text
        assert long["job_id"] in text
        assert "IMAGE_DOWNLOAD_FAILED" in text
        assert markup in text, "a sender's text is shown as text"
        assert f"lora-worker dead replay {bad['job_id']}" in text
        assert browser.evaluate("document.images.length") == 0
        browser.resize(390, 844, 2)
        wide = "document.documentElement.scrollWidth > window.innerWidth"
        assert not browser.evaluate(wide), "a phone must not have to scroll sideways"
        assert browser.complaints == []
        worker.process.kill()
        browser.wait_for("getComputedStyle(document.getElementById('lost')).display == 'block'")
        assert "No answer from the worker" in browser.text()


def test_webhooks_that_are_to_be_tried_again_are_counted_and_shown(site, port, asked):
    site.receiver.respond = lambda request: Reply(status=503)
    with with_status(site, port, WEBHOOK_RETRY_SECONDS="3600,7200"), Browser() as browser:
        eventually(asked.ready)
        for _ in range(2):
            site.publish(site.message(parameters={"rank": 0}))
        eventually(lambda: site.queue_sizes("model_training.events.retry.1h") == [2])
        # The end of a job has the queues looked at.
        site.publish(b"not a job at all")
        eventually(lambda: asked.json("/status")["queues"].get("events_retry") == 2)
        assert 'lora_worker_queue_messages{queue="events_retry"} 2.0' in asked.get("/metrics")[1]
        browser.open(asked.url + "/")
        browser.wait_for("document.getElementById('tiles').innerText.includes('2 waiting')")
        assert "2 to be tried again · none given up" in browser.text()
        assert browser.complaints == []


def test_a_message_whose_sender_cannot_be_told_is_counted_and_shown(site, port, asked):
    with with_status(site, port):
        eventually(asked.ready)
        site.publish(b"not json at all")
        stranger = site.message(webhook_url="http://elsewhere.example")
        site.publish(stranger)
        eventually(lambda: len(asked.json("/status")["recent"]) == 2, "two refused messages")
        ends = {end["job_id"]: end for end in asked.json("/status")["recent"]}
        known = ends.pop(stranger["job_id"])
        [unknown] = ends.values()
        assert (known["outcome"], known["code"], known["style_id"]) == ("failed", "INVALID_JOB", 10)
        assert "WEBHOOK_ALLOWED_HOSTS" in known["message"]
        assert (unknown["code"], unknown["style_id"]) == ("INVALID_JOB", None)
        counted = 'lora_worker_jobs_total{code="INVALID_JOB",outcome="failed"} 2.0'
        assert counted in asked.get("/metrics")[1]
