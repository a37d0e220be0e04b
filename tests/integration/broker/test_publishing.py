"""Messages out: the caller returns when the broker has the message, or learns that it has not."""

import socket
import threading
import time

import pytest
import structlog

from tests.integration.broker.conftest import Backend
from worker.broker.publisher import PublishFailed


def declare(backend: Backend, name: str, **arguments: object) -> None:
    backend.call(lambda c: c.queue_delete(name))
    backend.call(lambda c: c.queue_declare(name, durable=True, arguments=arguments or None))


def test_a_published_message_is_persistent_and_carries_what_it_was_given(backend, publisher):
    declare(backend, "q")
    publisher.publish("q", b"{}", message_id="id-1", headers={"a": 1, "b": "two"})
    properties, body = backend.get("q")
    assert body == b"{}"
    assert properties.delivery_mode == 2
    assert properties.message_id == "id-1"
    assert properties.headers == {"a": 1, "b": "two"}
    assert properties.content_type == "application/json"


def test_a_message_that_no_queue_takes_is_an_error(backend, publisher):
    declare(backend, "q")
    with pytest.raises(PublishFailed, match="not routable") as caught:
        publisher.publish("nowhere", b"{}", message_id=None, headers=None)
    assert "nowhere" in str(caught.value)
    publisher.publish("q", b"next", message_id=None, headers=None)
    assert backend.get("q")[1] == b"next"


def test_a_full_queue_that_rejects_is_an_error(backend, publisher):
    declare(backend, "q", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    publisher.publish("q", b"first", message_id=None, headers=None)
    with pytest.raises(PublishFailed, match="refused"):
        publisher.publish("q", b"second", message_id=None, headers=None)
    assert backend.get("q")[1] == b"first"
    publisher.publish("q", b"third", message_id=None, headers=None)


def test_an_exchange_that_does_not_exist_is_an_error_and_the_next_message_goes_through(
    backend, publisher
):
    declare(backend, "q")
    with pytest.raises(PublishFailed, match="404"):
        publisher.publish("", b"", message_id=None, headers=None, exchange="nope")
    publisher.publish("q", b"next", message_id=None, headers=None)
    assert backend.get("q")[1] == b"next"


def test_a_header_that_cannot_be_sent_is_an_error_and_the_next_message_goes_through(
    backend, publisher
):
    declare(backend, "q")
    with pytest.raises(PublishFailed):
        publisher.publish("q", b"", message_id=None, headers={"a": object()})
    publisher.publish("q", b"next", message_id=None, headers=None)
    assert backend.get("q")[1] == b"next"


def test_a_message_that_waits_behind_one_that_cannot_be_sent_goes_through(backend, publisher):
    declare(backend, "q")
    publisher.publish("q", b"first", message_id=None, headers=None)
    publisher._link._call(lambda: time.sleep(0.5))  # so that both wait when it looks
    bad = threading.Thread(target=lambda: unsendable(publisher))
    bad.start()
    time.sleep(0.1)
    publisher.publish("q", b"second", message_id=None, headers=None)
    bad.join()
    publisher.publish("q", b"third", message_id=None, headers=None)
    assert [backend.get("q")[1] for _ in range(3)] == [b"first", b"second", b"third"]


def unsendable(publisher) -> None:
    with pytest.raises(PublishFailed):
        publisher.publish("q", b"", message_id=None, headers={"a": object()})


def test_threads_share_a_publisher(backend, publisher):
    declare(backend, "q")
    failed: list[PublishFailed] = []

    def publish(number: int) -> None:
        for each in range(25):
            publisher.publish("q", b"%d.%d" % (number, each), message_id=None, headers=None)
        try:
            publisher.publish(f"nowhere-{number}", b"", message_id=None, headers=None)
        except PublishFailed as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.ready("q") == 100
    assert len(failed) == 4


def test_a_broker_that_does_not_answer_is_an_error_in_time(publishers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = publishers(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(PublishFailed, match="no answer"):
            publisher.publish("q", b"", message_id=None, headers=None, timeout_seconds=0.5)


def test_a_broker_that_is_not_there_is_an_error_that_says_so(publishers):
    publisher = publishers("amqp://guest:guest@127.0.0.1:1/")
    with pytest.raises(PublishFailed, match="refused") as caught:
        publisher.publish("q", b"", message_id=None, headers=None, timeout_seconds=1)
    assert "guest" not in str(caught.value)


def test_a_closed_publisher_refuses(backend, publisher):
    declare(backend, "q")
    publisher.publish("q", b"", message_id=None, headers=None)
    publisher.close()
    with pytest.raises(PublishFailed, match="closed"):
        publisher.publish("q", b"", message_id=None, headers=None)


def test_an_idle_publisher_keeps_its_connection(backend, publishers, rabbitmq_url):
    """With a heartbeat of 1 s, an unattended connection would be closed by the broker."""
    publisher = publishers(rabbitmq_url, heartbeat_seconds=1)
    declare(backend, "q")
    publisher.publish("q", b"", message_id=None, headers=None)
    first = publisher._link._connection
    time.sleep(4)
    publisher.publish("q", b"", message_id=None, headers=None)
    assert publisher._link._connection is first


def test_a_message_after_the_connection_was_closed_goes_through(
    private_rabbitmq_node, private_rabbitmq_url, publishers
):
    backend, publisher = Backend(private_rabbitmq_url), publishers(private_rabbitmq_url)
    declare(backend, "q")
    publisher.publish("q", b"before", message_id=None, headers=None)
    with structlog.testing.capture_logs() as logs:
        private_rabbitmq_node.ctl("close_all_connections", "--global", "test")
        publisher.publish("q", b"after", message_id=None, headers=None)
    assert [log["event"] for log in logs] == ["broker_lost", "broker_connected"]
    assert backend.drain("q") == [b"before", b"after"]


def test_messages_are_not_lost_while_connections_are_cut(
    private_rabbitmq_node, private_rabbitmq_url, publishers
):
    backend, publisher = Backend(private_rabbitmq_url), publishers(private_rabbitmq_url)
    declare(backend, "q")
    stop, confirmed, failed = threading.Event(), [], []

    def publish() -> None:
        while not stop.is_set():
            body = b"%d" % (len(confirmed) + len(failed))
            try:
                publisher.publish("q", body, message_id=None, headers=None)
                confirmed.append(body)
            except PublishFailed:
                failed.append(body)

    thread = threading.Thread(target=publish)
    thread.start()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            private_rabbitmq_node.ctl("close_all_connections", "--global", "test")
    stop.set()
    thread.join()
    assert sum(log["event"] == "broker_lost" for log in logs) >= 2
    assert len(confirmed) > 10
    assert set(confirmed) <= set(backend.drain("q"))


def test_a_blocked_broker_times_out_and_takes_messages_again_later(
    private_rabbitmq_node, private_rabbitmq_url, publishers
):
    backend, publisher = Backend(private_rabbitmq_url), publishers(private_rabbitmq_url)
    declare(backend, "q")
    publisher.publish("q", b"before", message_id=None, headers=None)
    watermark = private_rabbitmq_node.ctl
    watermark("set_vm_memory_high_watermark", "0.00001")
    try:
        for _ in range(2):
            with pytest.raises(PublishFailed, match="takes no messages"):
                publisher.publish("q", b"!", message_id=None, headers=None, timeout_seconds=1)
    finally:
        watermark("set_vm_memory_high_watermark", "0.4")
    publisher.publish("q", b"after", message_id=None, headers=None)
    # The first refused message had been written before the broker said that it was blocked.
    assert backend.drain("q") in ([b"before", b"!", b"after"], [b"before", b"after"])


def test_a_blocked_publisher_closes_without_waiting_for_the_broker(
    private_rabbitmq_node, private_rabbitmq_url, publishers
):
    backend, publisher = Backend(private_rabbitmq_url), publishers(private_rabbitmq_url)
    declare(backend, "q")
    private_rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        with pytest.raises(PublishFailed):
            publisher.publish("q", b"!", message_id=None, headers=None, timeout_seconds=1)
        publisher.close()
        assert publisher._thread is not None
        assert not publisher._thread.is_alive()
    finally:
        private_rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.4")
