"""The verbs, their words and their exit statuses, as a script meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pika
import pytest

from tests.live_worker import PATIENCE_SECONDS, eventually
from worker import __version__
from worker.demo.receiver import Reply


def lora_worker(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        **settings,
    )


@pytest.fixture
def job_file(site, tmp_path):
    def write(**changes):
        path = tmp_path / "job.json"
        path.write_text(json.dumps(site.message("cli-job", **changes)))
        return str(path)

    return write


def test_version_prints_the_version():
    answer = lora_worker("version")
    assert (answer.returncode, answer.stdout) == (0, __version__ + "\n")


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ([], "contract.schema.json"),
        (["--format", "json-schema"], "contract.schema.json"),
        (["--format", "asyncapi"], "contract.asyncapi.json"),
        (["--format", "openapi"], "contract.openapi.json"),
    ],
)
def test_schema_prints_the_published_document(options, published):
    answer = lora_worker("schema", *options)
    assert answer.stdout == (Path("docs") / published).read_text()


def test_validate_says_that_a_job_is_valid(site, job_file):
    answer = lora_worker("validate", job_file(surprise=1), env=site.environment())
    assert answer.returncode == 0
    assert "valid: job cli-job, 1 pictures" in answer.stdout
    assert "surprise is not a known field" in answer.stdout


def test_validate_names_every_broken_field_at_once(site, job_file):
    broken = job_file(style_id="x", parameters={"rank": 0, "epoch": 3})
    answer = lora_worker("validate", broken, env=site.environment())
    assert answer.returncode == 65
    for field in ("style_id:", "parameters.rank:", "parameters.epoch:"):
        assert field in answer.stderr


def test_validate_knows_the_catalogue(site, job_file):
    answer = lora_worker(
        "validate", job_file(parameters={"base_model": "sd99"}), env=site.environment()
    )
    assert answer.returncode == 65
    assert "'sd99' is not in the catalogue; it has tiny" in answer.stderr


def test_submit_and_wait_follows_a_job_to_its_result(site, job_file):
    with site.worker():
        answer = lora_worker("submit", job_file(), "--wait", env=site.environment())
    assert answer.returncode == 0, answer.stderr
    job_id, body = answer.stdout.splitlines()
    assert job_id == "cli-job"
    assert json.loads(body)["model_url"].startswith(f"s3://{site.results}/")


def test_submit_and_wait_ends_with_70_if_the_job_fails(site, job_file):
    missing = job_file(image_urls=[f"s3://{site.media}/none.jpg"])
    with site.worker():
        answer = lora_worker("submit", missing, "--wait", env=site.environment())
    assert answer.returncode == 70
    assert json.loads(answer.stdout.splitlines()[1])["error_code"] == "IMAGE_DOWNLOAD_FAILED"


def test_submit_without_a_broker_ends_with_69(site, job_file):
    environment = site.environment(RABBITMQ_URL="amqp://127.0.0.1:1/")
    answer = lora_worker("submit", job_file(), env=environment)
    assert answer.returncode == 69
    assert "could not be published" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["train"], 64, "give either a job file or --images"),
        (["train", "--images", "{empty}"], 65, "image_urls: is empty"),
        (["train", "--images", "{empty}", "-p", "rank"], 64, "must look like NAME=VALUE"),
        (["validate", "nowhere.json"], 2, "does not exist"),
    ],
)
def test_a_wrong_call_is_said_in_one_sentence(site, tmp_path, arguments, status, says):
    (tmp_path / "empty").mkdir()
    filled = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    answer = lora_worker(*filled, env=site.environment())
    assert answer.returncode == status, answer.stderr
    assert says in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


def test_cancel_stops_a_running_job_at_once_and_its_sender_hears_it(site, tmp_path):
    message = site.message("to-cancel", parameters={"max_train_steps": 50_000})
    with site.worker(LEASE_TERM_SECONDS="300", LEASE_RENEW_SECONDS="100") as worker:
        site.publish(message)
        worker.wait_for_log("stage_started", stage="training")
        shown = lora_worker("jobs", "show", "to-cancel", env=site.environment())
        answer = lora_worker("cancel", "to-cancel", env=site.environment())
        end = site.wait_for_end("to-cancel")
        assert worker.log("job_canceled_by_operator")
    assert json.loads(shown.stdout)["state"] == "training"
    assert answer.returncode == 0, answer.stderr
    assert "at its next step" in answer.stdout
    assert (end.event, end.json["error_code"]) == ("failed", "CANCELED")
    assert not site.objects("models/")
    again = lora_worker("cancel", "to-cancel", env=site.environment())
    assert again.returncode == 65
    assert "has ended already: canceled" in again.stderr


def test_a_queued_job_that_is_canceled_is_never_trained(site):
    message = site.message("queued")
    site.publish(message)
    answer = lora_worker("cancel", "queued", env=site.environment())
    assert answer.returncode == 0, answer.stderr
    with site.worker() as worker:
        end = site.wait_for_end("queued")
    assert end.json["error_code"] == "CANCELED"
    assert not worker.log("job_taken_up")


def test_jobs_show_tells_how_a_job_ended_and_that_one_is_unknown(site):
    message = site.message("shown")
    with site.worker():
        site.publish(message)
        site.wait_for_end("shown")
    shown = lora_worker("jobs", "show", "shown", env=site.environment())
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert (told["state"], told["body"]["style_id"]) == ("completed", 10)
    unknown = lora_worker("jobs", "show", "nobody-knows", env=site.environment())
    assert unknown.returncode == 65
    assert json.loads(unknown.stdout)["state"] == "unknown"


def test_a_dead_job_is_listed_shown_and_replayed_under_a_new_id(site):
    missing = f"s3://{site.media}/late.jpg"
    site.publish(site.message("was-dead", image_urls=[missing]))
    with site.worker():
        site.wait_for_end("was-dead")
        eventually(lambda: site.queue_sizes("model_training.dead") == [1])
        listed = lora_worker("dead", "list", env=site.environment())
        shown = lora_worker("dead", "show", "was-dead", env=site.environment())
        site.put_picture("late.jpg")
        replayed = lora_worker("dead", "replay", "was-dead", env=site.environment())
        new_id = replayed.stdout.splitlines()[0].rpartition(" ")[2]
        assert site.wait_for_end(new_id).event == "complete"
    assert listed.stdout.startswith("was-dead\tIMAGE_DOWNLOAD_FAILED\t")
    assert missing in json.loads(shown.stdout)["body"]
    assert new_id.startswith("was-dead:replay-")
    assert "1 moved" in replayed.stdout
    assert site.queue_sizes("model_training.dead") == [0]
    assert len([e for e in site.journal("was-dead") if e.event != "progress"]) == 1


def test_what_is_no_job_stays_in_the_quarantine_until_it_is_purged(site):
    with site.worker():
        site.publish(b"not a job")
        eventually(lambda: site.queue_sizes("model_training.dead") == [1])
    answer = lora_worker("dead", "replay", env=site.environment())
    assert "stays, its body is not a job" in answer.stderr
    assert site.queue_sizes("model_training.dead") == [1]
    purged = lora_worker("dead", "purge", "--yes", env=site.environment())
    assert purged.stdout == "1 thrown away\n"
    assert site.queue_sizes("model_training.dead") == [0]


def test_an_event_that_cannot_be_read_stays_until_it_is_purged(site):
    connection = pika.BlockingConnection(pika.URLParameters(site.broker_url))
    with site.worker() as worker:
        worker.wait_for_log("broker_connected", consumer="events")
        connection.channel().basic_publish("", "model_training.events", b"not an event")
        connection.close()
        eventually(lambda: site.queue_sizes("model_training.events.dead") == [1])
    replayed = lora_worker("events", "replay", env=site.environment())
    assert "stays, it is not readable" in replayed.stderr
    assert "Traceback" not in replayed.stderr
    purged = lora_worker("events", "purge", "--yes", env=site.environment())
    assert purged.stdout == "1 thrown away\n"
    assert site.queue_sizes("model_training.events.dead") == [0]


def test_a_webhook_that_was_given_up_is_replayed_byte_for_byte(site):
    site.receiver.respond = lambda request: Reply(status=404)
    with site.worker():
        site.publish(site.message("unheard"))
        eventually(lambda: site.queue_sizes("model_training.events.dead") == [1])
        listed = lora_worker("events", "list", env=site.environment())
        site.receiver.respond = lambda request: Reply()
        replayed = lora_worker("events", "replay", "unheard", env=site.environment())
        site.receiver.wait_for(lambda j: sum(e.event == "complete" for e in j) == 2, 30)
        eventually(lambda: "jobs/unheard/delivered.json" in site.objects("jobs/unheard/"))
    assert listed.stdout.startswith("unheard\tcomplete\thttp://127.0.0.1:")
    assert "answered 404" in listed.stdout
    assert "1 moved" in replayed.stdout
    first, second = [e for e in site.journal("unheard") if e.event == "complete"]
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
