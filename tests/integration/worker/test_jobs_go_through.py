"""The way from a message to an adapter and a webhook: real broker, store and receiver."""

import json
import signal

import pytest

from tests import standin_trainer as standin
from tests.live_worker import TOKEN, eventually
from worker.demo.receiver import Reply
from worker.demo.run import journal_problems


def test_a_flat_message_becomes_an_adapter_and_a_complete_webhook(site):
    message = site.message()
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
    assert end.event == "complete"
    url = f"s3://{site.results}/models/style_10/lora_weights.safetensors"
    assert end.json["model_url"] == end.json["model_path"] == url
    assert end.json["training_metric"]["loss"] == pytest.approx(0.2)
    assert end.json["metadata"]["lora_rank"] == 16
    objects = site.objects()
    adapter = objects["models/style_10/lora_weights.safetensors"]
    copy = f"models/style_10/jobs/{message['job_id']}/lora_weights.safetensors"
    assert objects[copy] == adapter
    assert json.loads(objects[f"jobs/{message['job_id']}/result.json"])["outcome"] == "completed"
    assert journal_problems(site.journal(message["job_id"])) == []


def test_an_enveloped_message_with_captions_beside_the_pictures(site):
    first = site.put_picture("a/1.jpg")
    second = site.put_picture("b/1.jpg")  # the same basename
    site.put_picture("b/1.txt", b"a hat")
    message = {
        "task_id": "550e8400-e29b-41d4-a716-446655440000",
        "type": "model_training",
        "data": {
            "style_id": 123,
            "images": [first, second],
            "tags": ["watercolor", "portrait"],
            "parameters": {"epochs": 3, "learning_rate": 0.0001, "batch_size": 1},
        },
        "webhook_url": f"{site.receiver.url}/api/webhooks/training/123/status",
        "created_at": "2025-01-20T10:00:00.000Z",
    }
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["task_id"])
    metadata = end.json["metadata"]
    assert metadata["captions"] == ["watercolor, portrait", "a hat"]
    assert len(set(metadata["image_files"])) == 2
    assert metadata["training_epochs"] == 3


def test_every_webhook_has_the_headers_of_the_contract(site):
    message = site.message()
    with site.worker():
        site.publish(message)
        site.wait_for_end(message["job_id"])
    journal = site.journal(message["job_id"])
    for entry in journal:
        assert entry.headers["authorization"] == f"Bearer {TOKEN}"
        assert entry.headers["x-request-source"] == "training-server"
        assert entry.headers["content-type"] == "application/json"
    keys = [entry.headers["idempotency-key"] for entry in journal]
    assert keys[-1] == f"{message['job_id']}:complete"
    assert len(set(keys)) == len(keys)
    assert {(e.method, e.path) for e in journal} == {
        ("PATCH", "/api/webhooks/training/progress"),
        ("POST", "/api/webhooks/training/complete"),
    }


def test_every_log_line_of_a_job_names_the_job_and_none_the_token(site):
    message = site.message()
    with site.worker() as worker:
        site.publish(message)
        site.wait_for_end(message["job_id"])
    stages = worker.log("stage_started")
    assert [line["stage"] for line in stages] == [
        "preparing",
        "downloading",
        "training",
        "uploading",
    ]
    for event in ("job_taken_up", "stage_ended", "job_committed", "webhook_sent"):
        for line in worker.log(event):
            assert (line["job_id"], line["style_id"]) == (message["job_id"], 10)
    assert all("gpu_peak_bytes" in line for line in worker.log("stage_ended"))
    assert TOKEN not in worker.log_file.read_text()
    assert not any(TOKEN.encode() in body for body in site.objects().values())


def test_a_trainer_sees_no_credentials_of_the_worker(site):
    message = site.message()
    with site.worker():
        site.publish(message)
        seen = site.wait_for_end(message["job_id"]).json["metadata"]["environment"]
    assert "PATH" in seen
    assert not {"INTERNAL_API_TOKEN", "RABBITMQ_URL", "AWS_SECRET_ACCESS_KEY"} & set(seen)


def test_a_message_without_a_webhook_is_trained_all_the_same(site):
    message = site.message(webhook_url=None)
    with site.worker() as worker:
        site.publish(message)
        worker.wait_for_log("job_committed")
    assert "models/style_10/lora_weights.safetensors" in site.objects()


def test_a_redelivered_or_duplicated_job_is_not_trained_twice(site):
    message = site.message(parameters={"max_train_steps": 100})
    with site.worker(TRAINERS_PER_GPU="1", name="a") as a, site.worker(name="b") as b:
        for _ in range(4):
            site.publish(message)
        site.wait_for_end(message["job_id"])
        queues = [f"model_training{s}" for s in ("", ".parked", ".resume", ".events")]
        eventually(lambda: not any(site.queue_sizes(*queues)), "all queues empty", 20)
    trained = [x for w in (a, b) for x in w.log("stage_started") if x["stage"] == "training"]
    assert len(trained) == 1
    ends = [e for e in site.journal(message["job_id"]) if e.event != "progress"]
    assert len(ends) == 1


def test_publishing_a_body_without_an_id_again_after_its_end_trains_again(site):
    body = site.message()
    del body["job_id"]
    with site.worker() as worker:
        for run in (1, 2):
            site.publish(body)
            worker.wait_for_log("job_committed", run)
    ids = [line["job_id"] for line in worker.log("job_committed")]
    assert ids[1] == ids[0] + "-2"
    ends = [e for e in site.receiver.journal if e.event == "complete"]
    assert [e.json["job_id"] for e in ends] == ids


def test_one_id_with_other_content_is_refused_and_nothing_is_said_under_it(site):
    first = site.message()
    second = {**first, "parameters": {"max_train_steps": 6}}
    with site.worker() as worker:
        site.publish(first)
        site.wait_for_end(first["job_id"])
        site.publish(second)
        worker.wait_for_log("job_dead_lettered")
        eventually(lambda: site.queue_sizes("model_training.dead") == [1])
    headers, body = site.take("model_training.dead")
    assert json.loads(body) == second
    assert headers["x-lora-code"] == "INVALID_JOB"
    assert "already used by a job with other content" in headers["x-lora-message"]
    assert len([e for e in site.journal(first["job_id"]) if e.event != "progress"]) == 1


def test_of_two_jobs_for_one_style_the_later_one_has_the_stable_key(site):
    jobs = [site.message(), site.message()]
    with site.worker():
        for job in jobs:
            site.publish(job)
            site.wait_for_end(job["job_id"])
    objects = site.objects("models/style_10/")
    newest = json.loads(objects["models/style_10/lora_weights.safetensors"])
    assert newest["job_id"] == jobs[1]["job_id"]
    for job in jobs:
        own = f"models/style_10/jobs/{job['job_id']}/lora_weights.safetensors"
        assert json.loads(objects[own])["job_id"] == job["job_id"]


def test_a_job_outlives_the_heartbeat_on_one_connection(site):
    message = site.message(parameters={"max_train_steps": 200})
    url = f"{site.broker_url}?heartbeat=2"
    with site.worker("-m", "tests.standin_worker", "0.1", RABBITMQ_URL=url) as worker:
        site.publish(message)
        assert site.wait_for_end(message["job_id"]).event == "complete"
        assert not worker.log("broker_lost")
        connected = [line for line in worker.log("broker_connected") if "jobs" in str(line)]
        assert len(connected) == 1


def test_a_long_job_is_handed_over_before_the_broker_takes_it_back(site):
    message = site.message(parameters={"max_train_steps": 300})
    with site.worker(HANDOVER_AFTER_SECONDS="0.5") as worker:
        site.publish(message)
        assert site.wait_for_end(message["job_id"]).event == "complete"
        assert worker.log("delivery_handed_over")
        queues = [f"model_training{s}" for s in ("", ".parked", ".resume")]
        eventually(lambda: not any(site.queue_sizes(*queues)), "all queues empty", 20)
    assert len(worker.log("job_taken_up")) == 1
    assert len([e for e in site.journal(message["job_id"]) if e.event == "complete"]) == 1


def test_sigterm_leaves_a_checkpoint_and_another_worker_goes_on_from_it(site):
    message = site.message(parameters={"max_train_steps": 300, "checkpoint_seconds": 3600})
    with site.worker(name="first") as first:
        site.publish(message)
        site.receiver.wait_for(
            lambda journal: any(e.json["progress"]["current_step"] > 20 for e in journal), 30
        )
        first.signal()
        assert first.wait(20) == 0
    stopped_at = first.log("job_interrupted")[0]["step"]
    assert stopped_at > 20
    with site.worker(name="second") as second:
        assert site.wait_for_end(message["job_id"]).event == "complete"
    assert second.log("checkpoint_found")[0]["step"] == stopped_at
    taken = second.log("job_taken_up")[0]
    assert (taken["epoch"], taken["attempt"]) == (2, 1)
    assert journal_problems(site.journal(message["job_id"])) == []


def test_a_second_sigterm_ends_at_once(site):
    with site.worker() as worker:
        site.publish(site.message(style_id=standin.HANGS))
        worker.wait_for_log("stage_started", stage="training")
        worker.signal()
        worker.wait_for_log("worker_stopping")
        worker.signal()
        assert worker.wait(10) == 128 + signal.SIGTERM


def test_a_receiver_that_says_gone_cancels_the_job(site):
    message = site.message(parameters={"max_train_steps": 50_000})

    def gone(request):
        return Reply(status=410 if request.event == "progress" else 200)

    site.receiver.respond = gone
    with site.worker():
        site.publish(message)
        end = site.wait_for_end(message["job_id"])
    assert (end.event, end.json["error_code"]) == ("failed", "CANCELED")
    assert not site.objects("models/")
    assert site.journal(message["job_id"])[-1] is end
