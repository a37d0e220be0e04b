"""Bad input gets a clear error, nothing is lost, and the worker goes on to the next job."""

import json
import time

import pytest

from tests import standin_trainer as standin
from tests.live_worker import eventually
from worker.demo.receiver import Receiver, Reply


def goes_on(site):
    """The worker still does a good job."""
    message = site.message()
    site.publish(message)
    assert site.wait_for_end(message["job_id"]).event == "complete"


def dead_letter(site):
    eventually(lambda: site.queue_sizes("model_training.dead") == [1], "a dead letter")
    return site.take("model_training.dead")


def with_data(message, **changes):
    return {**message, "data": {**message.get("data", {}), **changes}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"style_id": 10, "image_urls": []}, "image_urls: is empty; send at least one"),
        ({"image_urls": None}, "image_urls: is missing"),
        ({"type": "image_generation"}, "type: must be 'model_training', found 'image_generation'"),
        ({"parameters": {"rank": 1000}}, "parameters.rank: should be less than or equal to 256"),
        ({"parameters": {"epoch": 3}}, "parameters.epoch: is not a known parameter; did you mean"),
        ({"parameters": {"batch_size": 4}}, "parameters.train_batch_size: is 4 with 1 pictures"),
        (
            {"parameters": {"base_model": "sd99"}},
            "parameters.base_model: 'sd99' is not in this worker's catalogue; it has tiny",
        ),
        (
            {"image_urls": ["ftp://host/a.jpg"]},
            "image_urls.0.url: 'ftp://host/a.jpg' must start with one of s3://",
        ),
    ],
)
def test_an_invalid_job_is_dead_lettered_and_its_sender_told(site, change, says):
    message = site.message(**change)
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        headers, body = dead_letter(site)
        goes_on(site)
    assert (end.event, end.json["error_code"]) == ("failed", "INVALID_JOB")
    assert end.json["style_id"] == 10
    assert says in end.json["error_message"]
    assert json.loads(body) == message
    assert headers["x-lora-code"] == "INVALID_JOB"
    assert says in headers["x-lora-message"]
    assert headers["x-lora-job-id"] == message["job_id"]
    assert {e.event for e in site.journal(message["job_id"])} == {"failed"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"not json at all", "not JSON in UTF-8"),
        (b"\x00\xff", "not JSON in UTF-8"),
        (b"[]", "is a JSON list"),
        (b"", "not JSON in UTF-8"),
        (b'{"image_urls": ["s3://b/a.jpg"]}', "style_id: is missing"),
    ],
)
def test_a_body_that_names_nobody_to_tell_is_dead_lettered_with_the_reason(site, body, says):
    with site.worker():
        site.publish(body)
        headers, dead = dead_letter(site)
        goes_on(site)
    assert dead == body
    assert says in headers["x-lora-message"]


def test_an_invalid_job_that_is_published_again_is_told_once(site):
    message = site.message(image_urls=[])
    with site.worker() as worker:
        site.publish(message)
        site.wait_for_end(message["job_id"])
        eventually(lambda: f"jobs/{message['job_id']}/delivered.json" in site.objects("jobs/"))
        site.publish(message)
        goes_on(site)
        assert worker.log("job_refused")[1]
    assert len(site.journal(message["job_id"])) == 1


def test_an_invalid_body_without_an_id_is_told_each_time_it_is_published(site):
    body = site.message(image_urls=[])
    del body["job_id"]
    with site.worker() as worker:
        for run in (1, 2):
            site.publish(body)
            worker.wait_for_log("job_committed", run)
            eventually(lambda run=run: len(site.receiver.journal) == run, "its sender is told")
    ids = [one.json["job_id"] for one in site.receiver.journal]
    assert ids[1] == ids[0] + "-2"
    assert site.queue_sizes("model_training.dead") == [2]


def test_a_webhook_host_that_is_not_allowed_gets_nothing_and_never_the_token(site):
    with Receiver() as stranger:
        message = site.message(webhook_url=stranger.url)
        with site.worker():
            site.publish(message)
            headers, _ = dead_letter(site)
            goes_on(site)
        assert stranger.journal == []
    assert "is not allowed" in headers["x-lora-message"]
    assert "WEBHOOK_ALLOWED_HOSTS" in headers["x-lora-message"]


def test_pictures_that_are_not_there_fail_the_job_and_are_named(site):
    missing = f"s3://{site.media}/none.jpg"
    message = site.message(
        image_urls=[site.put_picture("a.jpg"), missing, "s3://no-such-bucket-4711/a.jpg"]
    )
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        headers, _ = dead_letter(site)
        goes_on(site)
    assert end.json["error_code"] == headers["x-lora-code"] == "IMAGE_DOWNLOAD_FAILED"
    said = end.json["error_message"]
    assert said.startswith("2 of 3 pictures could not be downloaded")
    assert missing in said
    assert "s3://no-such-bucket-4711/a.jpg" in said


def test_pictures_from_hosts_and_files_that_are_not_allowed_are_refused(site):
    urls = ["https://evil.example/a.jpg", "file:///etc/passwd"]
    message = site.message(image_urls=urls)
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        goes_on(site)
    assert end.json["error_code"] == "IMAGE_DOWNLOAD_FAILED"
    assert all(url in end.json["error_message"] for url in urls)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_receiver_with_a_passing_fault_is_asked_again_with_the_same_words(site, status):
    answers = iter([status, status])

    def respond(request):
        return Reply(status=200 if request.event == "progress" else next(answers, 200))

    site.receiver.respond = respond
    message = site.message()
    with site.worker():
        site.publish(message)
        site.receiver.wait_for(lambda j: sum(e.event == "complete" for e in j) == 3, 60)
        eventually(lambda: f"jobs/{message['job_id']}/delivered.json" in site.objects("jobs/"))
    tries = [e for e in site.journal(message["job_id"]) if e.event == "complete"]
    assert len({(e.body, e.headers["idempotency-key"]) for e in tries}) == 1
    assert [e.event for e in site.journal(message["job_id"])][-3:] == ["complete"] * 3


def test_a_receiver_that_hangs_keeps_no_job_from_starting_and_hears_of_the_end_later(site):
    hanging = [True]

    def respond(request):
        if request.json["job_id"] == "slow" and hanging[0]:
            time.sleep(5)
        return Reply()

    site.receiver.respond = respond
    slow = site.message("slow")
    with site.worker() as worker:
        site.publish(slow)
        worker.wait_for_log("stage_ended", stage="uploading", job_id="slow")
        goes_on(site)
        assert not [e for e in site.journal("slow") if e.event == "complete" and not hanging[0]]
        hanging[0] = False
        eventually(lambda: "jobs/slow/delivered.json" in site.objects("jobs/slow/"))
    assert len({e.body for e in site.journal("slow") if e.event == "complete"}) == 1


def test_a_receiver_that_redirects_is_not_followed_and_the_event_is_kept(site):
    with Receiver() as elsewhere:
        site.receiver.respond = lambda _: Reply(
            status=302, headers={"Location": f"{elsewhere.url}/steal"}
        )
        message = site.message()
        with site.worker() as worker:
            site.publish(message)
            worker.wait_for_log("webhook_given_up")
            eventually(lambda: site.queue_sizes("model_training.events.dead") == [1])
            site.receiver.respond = lambda _: Reply()
            goes_on(site)
        assert elsewhere.journal == []
    headers, body = site.take("model_training.events.dead")
    assert "302" in headers["x-lora-reason"]
    assert json.loads(body)["job_id"] == message["job_id"]


def test_a_trainer_that_crashes_once_costs_one_attempt(site):
    message = site.message(style_id=standin.CRASHES_ONCE)
    with site.worker() as worker:
        site.publish(message)
        assert site.wait_for_end(message["job_id"]).event == "complete"
    assert [line["attempt"] for line in worker.log("job_taken_up")] == [1, 2]
    assert not any(site.queue_sizes("model_training.dead"))


@pytest.mark.parametrize("style", [standin.CRASHES, standin.SEGFAULTS])
def test_a_job_whose_trainer_always_crashes_is_given_up_and_the_worker_goes_on(site, style):
    message = site.message(style_id=style)
    with site.worker() as worker:
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        dead_letter(site)
        goes_on(site)
    assert end.json["error_code"] == "WORKER_CRASHED"
    attempts = [x["attempt"] for x in worker.log("job_taken_up") if x["style_id"] == style]
    assert attempts == [1, 2, 3, 4, 5]


def test_a_permanent_error_of_the_trainer_is_told_as_it_is(site):
    message = site.message(style_id=standin.OUT_OF_MEMORY)
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        goes_on(site)
    assert end.json["error_code"] == "GPU_OUT_OF_MEMORY"
    assert end.json["error_message"] == "It needs 9 GiB and has 8."


def test_a_job_over_its_time_limit_fails_with_the_step_it_reached(site):
    message = site.message(parameters={"max_train_steps": 50_000, "time_limit_seconds": 1})
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
        goes_on(site)
    assert end.json["error_code"] == "TIME_LIMIT_EXCEEDED"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"S3_BUCKET": "no-such-bucket-4711"}, "S3_BUCKET no-such-bucket-4711"),
        ({"BASE_MODELS_FILE": "nowhere.toml"}, "BASE_MODELS_FILE"),
        ({"DEFAULT_BASE_MODEL": "sd99"}, "DEFAULT_BASE_MODEL 'sd99'"),
        ({"WEBHOOK_BASE_URL": "http://elsewhere.example"}, "WEBHOOK_BASE_URL"),
        ({"WEBHOOK_ALLOWED_HOSTS": "http://a b"}, "WEBHOOK_ALLOWED_HOSTS"),
        ({"IMAGE_ALLOWED_BUCKETS": "media/train"}, "IMAGE_ALLOWED_BUCKETS"),
        ({"WEBHOOK_SIGNING_SECRET": "whsec_***"}, "WEBHOOK_SIGNING_SECRET"),
        ({"RABBITMQ_PORT": "many"}, "RABBITMQ_PORT"),
        ({"ENVIRONMENT": "production", "INTERNAL_API_TOKEN": ""}, "INTERNAL_API_TOKEN"),
        ({"ENVIRONMENT": "production", "WEBHOOK_ALLOWED_HOSTS": ""}, "WEBHOOK_ALLOWED_HOSTS"),
        ({"ENVIRONMENT": "production", "CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_start_with_settings_that_cannot_work_ends_with_64_and_names_the_variable(
    site, settings, says
):
    with site.worker("-m", "worker.cli", "run", **settings) as worker:
        assert worker.wait(30) == 64
    text = worker.log_file.read_text()
    assert f"lora-worker: {says}" in text
    assert "Traceback" not in text


def test_a_job_that_waited_too_long_fails_unbegun_and_its_sender_hears_why(site):
    old = site.message(created_at="2025-01-20T10:00:00.000Z")
    new, undated = site.message(created_at="2999-01-20T10:00:00Z"), site.message()
    with site.worker(JOB_MAX_AGE_SECONDS="3600") as worker:
        for message in (old, new, undated):
            site.publish(message)
        end = site.wait_for_end(old["job_id"])
        assert site.wait_for_end(new["job_id"]).event == "complete"
        assert site.wait_for_end(undated["job_id"]).event == "complete"
    assert (end.event, end.json["error_code"]) == ("failed", "TIME_LIMIT_EXCEEDED")
    assert "hours for a worker and may wait 1.0" in end.json["error_message"]
    assert len(worker.log("job_taken_up")) == 2
