"""A backend publishes through the client: what it says is in the queue when it returns."""

import json
import os
import threading
import time
import uuid

import pytest

from tests.integration.broker.conftest import Backend
from worker.client.publishing import InvalidJob, LoraJobClient, PublishFailed
from worker.contract.job import parse_message

JOB = {"style_id": 10, "images": ["s3://media/a.jpg"], "webhook_url": "https://api.example.com"}


@pytest.fixture
def backend(rabbitmq_url):
    """Somebody who looks into the queues."""
    return Backend(rabbitmq_url)


@pytest.fixture
def client(rabbitmq_url):
    with LoraJobClient(rabbitmq_url) as client:
        yield client


def test_a_job_lies_in_the_queue_persistent_and_valid(client, backend):
    job_id = client.submit(
        **JOB, trigger_word="sks", tags=["ink"], parameters={"epochs": 3}, job_id="mine"
    )
    properties, body = backend.get("model_training")
    assert job_id == "mine"
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")
    assert properties.message_id == "mine"
    assert properties.timestamp
    job = parse_message(body).job
    assert (job.job_id, job.style_id, job.trigger_word, job.tags) == ("mine", 10, "sks", ("ink",))
    assert job.parameters.num_train_epochs == 3
    assert job.images[0].url == "s3://media/a.jpg"


def test_a_job_without_an_id_gets_one_that_nobody_has(client, backend):
    ids = [client.submit(**JOB) for _ in range(2)]
    assert len({uuid.UUID(job_id) for job_id in ids}) == 2
    sent = [json.loads(backend.get("model_training")[1])["job_id"] for _ in range(2)]
    assert sent == ids


def test_captions_travel_with_their_pictures(client, backend):
    client.submit(style_id=1, images=[{"url": "s3://media/a.jpg", "caption": "a hill"}])
    assert parse_message(backend.get("model_training")[1]).job.images[0].caption == "a hill"


def test_a_whole_message_goes_out_byte_for_byte(client, backend):
    body = b'{"style_id":  1, "image_urls": ["s3://media/a.jpg"]}'
    job_id = client.publish(body)
    properties, sent = backend.get("model_training")
    assert sent == body
    # It names no id: the worker finds it beside the body.
    assert properties.message_id == job_id
    assert parse_message(sent, message_id=properties.message_id).job.job_id == job_id


def test_every_broken_field_is_named_and_nothing_is_sent(client, backend):
    with pytest.raises(InvalidJob) as caught:
        client.submit(style_id=0, images=["ftp://a"], parameters={"rank": 0, "epoch": 3})
    fields = [field for field, _ in caught.value.problems]
    assert fields == ["style_id", "image_urls.0.url", "parameters.rank", "parameters.epoch"]
    backend.call(lambda channel: channel.queue_declare("model_training", durable=True))
    assert backend.get("model_training") is None


def test_more_pictures_than_the_workers_take_are_refused_here(rabbitmq_url):
    client = LoraJobClient(rabbitmq_url, max_images=1)
    with pytest.raises(InvalidJob, match="at most 1 are allowed"):
        client.submit(style_id=1, images=["s3://m/a.jpg", "s3://m/b.jpg"])


def test_a_connection_that_was_lost_is_made_anew(client, backend, private_rabbitmq_node):
    client.submit(**JOB)
    backend.get("model_training")
    private_rabbitmq_node.ctl("close_all_connections", "a test")
    job_id = client.submit(**JOB)
    assert json.loads(backend.get("model_training")[1])["job_id"] == job_id
    assert backend.get("model_training") is None


def test_a_queue_that_is_gone_is_declared_again(client, backend):
    client.submit(**JOB)
    backend.call(lambda channel: channel.queue_delete("model_training"))
    client.submit(**JOB)
    assert backend.get("model_training") is not None


def test_a_broker_that_is_not_there_is_an_error_without_the_password():
    client = LoraJobClient("amqp://user:a-password@127.0.0.1:1/")
    with pytest.raises(PublishFailed, match="queue 'model_training'") as caught:
        client.submit(**JOB)
    assert "a-password" not in str(caught.value)


def test_a_queue_that_a_plain_declare_does_not_fit_is_an_error_that_says_so(client, backend):
    def bound(channel):
        channel.queue_declare(
            "full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )

    backend.call(bound)
    # The queue was declared with arguments, which a plain declare does not have.
    with LoraJobClient(backend.url, queue="full") as narrow, pytest.raises(PublishFailed) as caught:
        narrow.submit(**JOB)
    assert "406" in str(caught.value)
    assert client.submit(**JOB)


def test_a_policy_that_rejects_is_an_error(client, backend, private_rabbitmq_node):
    vhost = backend.url.rpartition("/")[2]
    client.submit(**JOB)
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    private_rabbitmq_node.ctl("set_policy", "-p", vhost, "full", "model_training", policy)
    with pytest.raises(PublishFailed, match="refused by the broker"):
        client.submit(**JOB)
    backend.get("model_training")
    assert client.submit(**JOB)


def test_a_broker_that_takes_nothing_is_an_error_and_not_a_hang(
    rabbitmq_url, private_rabbitmq_node
):
    private_rabbitmq_node.ctl("set_vm_memory_high_watermark", "0")
    client = LoraJobClient(f"{rabbitmq_url}?blocked_connection_timeout=1")
    started = time.monotonic()
    try:
        with pytest.raises(PublishFailed, match="queue 'model_training'"):
            client.submit(**JOB)
        took_seconds = time.monotonic() - started
    finally:
        private_rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.4")
    assert took_seconds < 30


def test_threads_share_a_client(client, backend):
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(client.submit(**JOB))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [json.loads(backend.get("model_training")[1])["job_id"] for _ in threads]
    assert sorted(sent) == sorted(ids)


def test_a_forked_process_does_not_speak_on_its_parent_s_connection(client, backend):
    client.submit(**JOB, job_id="parent-1")
    child = os.fork()
    if child == 0:
        try:
            client.submit(**JOB, job_id="child")
            client.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    client.submit(**JOB, job_id="parent-2")
    sent = [json.loads(backend.get("model_training")[1])["job_id"] for _ in range(3)]
    assert sent == ["parent-1", "child", "parent-2"]


def test_a_closed_client_can_be_used_again(client):
    client.submit(**JOB)
    client.close()
    assert client.submit(**JOB)


def test_a_client_that_was_never_used_has_never_connected():
    LoraJobClient("amqp://127.0.0.1:1/").close()
