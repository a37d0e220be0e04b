"""The address of the broker, and the waits between tries."""

import random

import pytest

from worker.broker.connection import Backoff, BrokerAddress
from worker.settings import load_settings


def test_the_password_is_in_no_text_of_an_address():
    address = BrokerAddress("amqp://ann:s3cr3t%2F%40%3A@mq:5672/a%2Fb")
    for text in (str(address), repr(address), f"{address}"):
        assert "s3cr3t" not in text
    assert str(address) == "amqp://ann@mq:5672/a%2Fb"


def test_parts_with_special_characters_arrive_as_they_are(monkeypatch):
    parts = {"HOST": "mq", "USER": "a@b", "PASSWORD": "p:/?#w", "VHOST": "/x y"}
    for name, value in parts.items():
        monkeypatch.setenv(f"RABBITMQ_{name}", value)
    parameters = BrokerAddress(load_settings().broker_url).parameters("jobs")
    assert parameters.credentials.username == "a@b"
    assert parameters.credentials.password == "p:/?#w"
    assert parameters.virtual_host == "/x y"
    assert (parameters.host, parameters.port) == ("mq", 5672)


def test_the_connection_says_who_it_is_and_how_patient():
    parameters = BrokerAddress("amqp://u:p@mq/", heartbeat_seconds=7).parameters("jobs")
    assert parameters.heartbeat == 7
    assert parameters.blocked_connection_timeout == 60
    assert parameters.client_properties["connection_name"] == "jobs"
    assert parameters.client_properties["product"] == "lora-worker"
    assert parameters.client_properties["version"]


def test_what_the_url_asks_for_wins():
    url = "amqp://u:p@mq/?heartbeat=9&blocked_connection_timeout=5&socket_timeout=3"
    parameters = BrokerAddress(url, heartbeat_seconds=60).parameters("jobs")
    assert parameters.heartbeat == 9
    assert parameters.blocked_connection_timeout == 5
    assert parameters.socket_timeout == 3


@pytest.mark.parametrize("url", ["http://mq/", "mq:5672", "amqp:///vhost"])
def test_what_is_no_amqp_address_is_refused_without_repeating_it(url: str):
    with pytest.raises(ValueError, match="amqp://") as caught:
        BrokerAddress(url).parameters("jobs")
    assert url not in str(caught.value)


def test_the_bound_of_the_wait_doubles_from_half_a_second_to_thirty():
    backoff = Backoff()
    bounds = []
    for _ in range(9):
        bounds.append(backoff.bound_seconds)
        backoff.next_seconds()
    assert bounds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    backoff.reset()
    assert backoff.bound_seconds == 0.5


def test_workers_that_lost_one_broker_together_do_not_come_back_together():
    waits = []
    for seed in range(200):
        backoff = Backoff(random_source=random.Random(seed))
        waits.append([backoff.next_seconds() for _ in range(7)][-1])
    assert all(0 <= wait <= 30 for wait in waits)
    quarters = {int(wait // 7.5) for wait in waits}
    assert quarters == {0, 1, 2, 3}
