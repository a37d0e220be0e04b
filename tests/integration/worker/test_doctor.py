"""`doctor`, the checks before a start, `topology`, `models`, `health` and `status`."""

import json
import socket
import subprocess
import sys
import urllib.request

import pika
import pytest

from tests.live_worker import PATIENCE_SECONDS, eventually
from worker.broker.topology import Topology


def lora_worker(site, *arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env=site.environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def findings(site, **settings):
    answer = lora_worker(site, "doctor", "--json", **settings)
    told = json.loads(answer.stdout)
    assert told["ok"] == (answer.returncode == 0)
    return [(f["check"], f["verdict"], f["sentence"]) for f in told["findings"]]


def said(found, check, verdict):
    return " | ".join(s for c, v, s in found if (c, v) == (check, verdict))


def test_doctor_finds_a_healthy_site_in_order(site):
    site.declare_queue()
    assert lora_worker(site, "topology", "apply").returncode == 0
    answer = lora_worker(site, "doctor")
    assert answer.returncode == 0, answer.stdout
    assert "FAILED" not in answer.stdout
    found = findings(site)
    assert "RabbitMQ" in said(found, "broker", "ok")
    assert "may declare, write and read" in said(found, "broker", "ok")
    assert "as the settings ask for" in said(found, "queues", "ok")
    assert "conditional writes are enforced" in said(found, "store", "ok")
    assert "clock and the store's differ by" in said(found, "clock", "ok")
    assert f"{site.receiver.host} can be reached" in said(found, "webhooks", "ok")
    assert "tiny is here" in said(found, "models", "ok")
    assert "no GPU is visible" in said(found, "gpu", "warning")
    assert site.objects("jobs/") == {}, "doctor leaves nothing behind"


@pytest.mark.parametrize(
    ("settings", "check", "says"),
    [
        ({"RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:1/"}, "broker", "cannot be reached"),
        ({"S3_BUCKET": "no-such-bucket-4711"}, "store", "does not exist"),
        ({"S3_ENDPOINT_URL": "http://127.0.0.1:1"}, "store", "cannot be used"),
        ({"WORK_DIR": "/proc/nowhere"}, "disk", "WORK_DIR /proc/nowhere cannot be written"),
    ],
)
def test_doctor_says_what_is_broken_and_ends_with_69(site, settings, check, says):
    assert says in said(findings(site, **settings), check, "failed")


def test_doctor_says_that_a_login_is_refused(site):
    url = site.broker_url.replace("guest:guest", "guest:wrong-4711")
    sentence = said(findings(site, RABBITMQ_URL=url), "broker", "failed")
    assert "refuses this login" in sentence
    assert "wrong-4711" not in sentence


def test_doctor_names_a_queue_with_other_arguments_and_missing_model_files(site):
    connection = pika.BlockingConnection(pika.URLParameters(site.broker_url))
    connection.channel().queue_declare(Topology().dead, durable=True)
    connection.close()
    (site.folder / "model" / "unet" / "model.safetensors").unlink()
    found = findings(site)
    assert f"{Topology().dead}: declared with other arguments" in said(found, "queues", "warning")
    assert "unet/*.safetensors is missing" in said(found, "models", "failed")


def test_doctor_names_a_receiver_that_cannot_be_reached(site):
    found = findings(site, WEBHOOK_ALLOWED_HOSTS="127.0.0.1:1,no-such-host.invalid")
    sentences = said(found, "webhooks", "warning")
    assert "127.0.0.1:1 cannot be reached: port 1: Connection refused" in sentences
    assert "no-such-host.invalid cannot be reached" in sentences


@pytest.mark.parametrize("broken", ["model", "login", "disk"])
def test_a_worker_that_could_not_train_refuses_to_start_with_one_sentence(site, broken):
    settings = {
        "model": {},
        "login": {"RABBITMQ_URL": site.broker_url.replace("guest:guest", "guest:wrong")},
        "disk": {"WORK_DIR": "/proc/nowhere"},
    }[broken]
    if broken == "model":
        (site.folder / "model" / "vae" / "model.safetensors").unlink()
    answer = lora_worker(site, "run", **settings)
    assert answer.returncode == 64
    complaints = [line for line in answer.stderr.splitlines() if line.startswith("lora-worker:")]
    assert len(complaints) == 1
    says = {
        "model": "base model tiny cannot be loaded: vae/*.safetensors is missing",
        "login": "the broker refuses this login",
        "disk": "WORK_DIR /proc/nowhere cannot be written",
    }
    assert says[broken] in complaints[0]


def test_topology_shows_what_is_missing_and_apply_declares_it(site):
    version, *before = lora_worker(site, "topology", "show").stdout.splitlines()
    assert version.startswith("RabbitMQ ")
    [dead] = [line for line in before if f"{Topology().dead} " in line]
    assert dead.startswith("missing ")
    applied = lora_worker(site, "topology", "apply")
    assert (applied.returncode, "are as the settings ask for" in applied.stdout) == (0, True)
    site.publish(b"{}")
    after = json.loads(lora_worker(site, "topology", "show", "--json").stdout)
    by_name = {queue["name"]: queue for queue in after["queues"]}
    assert by_name["model_training"]["messages"] == 1
    assert by_name["model_training.dead"]["wanted"]["x-overflow"] == "reject-publish"
    assert {queue["state"] for queue in after["queues"]} == {"as wanted"}


def test_models_list_pins_the_weights_by_their_digest(site):
    listed = lora_worker(site, "models", "list", "--digest")
    assert listed.returncode == 0
    digest = listed.stdout.split("\t")[1].split(", ")[2]
    assert digest.startswith("sha256:")
    site.catalogue.write_text(f'[tiny]\nlocation = "model"\ndigest = "{digest}"\n')
    assert lora_worker(site, "models", "list", "--digest").returncode == 0
    (site.folder / "model" / "unet" / "model.safetensors").write_bytes(b"other weights")
    other = lora_worker(site, "models", "list", "--digest")
    assert other.returncode == 69
    assert "other weights than the catalogue's digest" in other.stdout


def test_health_and_status_speak_with_the_worker_of_this_machine(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert lora_worker(site, "health").returncode == 64
    assert lora_worker(site, "health", HTTP_PORT=port).returncode == 69
    with site.worker(HTTP_PORT=port):
        eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
        assert lora_worker(site, "health", "--ready", HTTP_PORT=port).stdout == "ready\n"
        assert lora_worker(site, "health", HTTP_PORT=port).stdout == "alive\n"
        message = site.message(style_id=903)
        site.publish(message)
        site.wait_for_end(message["job_id"])
        status = lora_worker(site, "status", HTTP_PORT=port).stdout
        assert "ready" in status.splitlines()[0]
        assert f"{message['job_id']}  style 903  failed  GPU_OUT_OF_MEMORY" in status
        told = json.loads(lora_worker(site, "status", "--json", HTTP_PORT=port).stdout)
        assert told["counts"]["failed"] == 1
