"""A backend, and a worker that only receives, for the tests of the broker room."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Consumer
from worker.broker.delivery import Delivery
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology


class Backend:
    """Somebody else on the same virtual host, with a connection a call as backends have it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, function: Callable[[Any], Any]) -> Any:
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            return function(connection.channel())
        finally:
            connection.close()

    def publish(self, *bodies: bytes, queue: str = "model_training") -> None:
        def publish(channel: Any) -> None:
            if queue == "model_training":
                channel.queue_declare(queue="model_training", durable=True)
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish(
                    "", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True
                )

        self.call(publish)

    def ready(self, queue: str = "model_training") -> int:
        """Messages that nobody holds."""
        declared = self.call(lambda channel: channel.queue_declare(queue, passive=True))
        return int(declared.method.message_count)

    def get(self, queue: str) -> tuple[Any, bytes] | None:
        """Properties and body of the next message, taken off the queue."""
        method, properties, body = self.call(lambda c: c.basic_get(queue, auto_ack=True))
        return None if method is None else (properties, body)

    def drain(self, queue: str) -> list[bytes]:
        """All bodies of a queue, taken off it."""

        def drain(channel: Any) -> list[bytes]:
            bodies = []
            while (body := channel.basic_get(queue, auto_ack=True)[2]) is not None:
                bodies.append(body)
            return bodies

        return list(self.call(drain))


class Receiver:
    """A consumer whose deliveries a test can wait for."""

    def __init__(self, url: str, *, slots: int = 1, topology: Topology, **options: Any) -> None:
        self.deliveries: queue.Queue[Delivery] = queue.Queue()
        self.gave_up = threading.Event()
        heartbeat_seconds = options.pop("heartbeat_seconds", 30)
        queues = options.pop("queues", [topology.resume, topology.main])
        self.consumer = Consumer(
            BrokerAddress(url, heartbeat_seconds=heartbeat_seconds, connect_timeout_seconds=5),
            queues=queues,
            slots=slots,
            on_delivery=self.deliveries.put,
            declare=options.pop("declare", topology.declare),
            name="test",
            on_give_up=self.gave_up.set,
            **options,
        )
        self.consumer.start()

    def next(self, timeout_seconds: float = 20) -> Delivery:
        return self.deliveries.get(timeout=timeout_seconds)

    def nothing_within(self, seconds: float) -> bool:
        try:
            self.deliveries.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def finish(self, delivery: Delivery) -> None:
        assert self.consumer.ack(delivery)
        self.consumer.free(delivery.slot)


def eventually(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until `condition` holds; returns what it says."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come to hold"
        time.sleep(0.05)
    return value


@pytest.fixture
def topology() -> Topology:
    return Topology()


@pytest.fixture
def backend(rabbitmq_url: str) -> Backend:
    return Backend(rabbitmq_url)


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Makes receivers at any address and closes them in the end."""
    made: list[Receiver] = []

    def make(url: str, **options: Any) -> Receiver:
        options.setdefault("topology", Topology())
        made.append(Receiver(url, **options))
        return made[-1]

    yield make
    for receiver in made:
        receiver.consumer.close()
    for receiver in made:
        assert receiver.consumer.join(20)


@pytest.fixture
def receiver(rabbitmq_url: str, receivers: Callable[..., Receiver]) -> Callable[..., Receiver]:
    """Makes receivers at the test's own address."""

    def make(**options: Any) -> Receiver:
        return receivers(rabbitmq_url, **options)

    return make


@pytest.fixture
def publishers() -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(url: str, **options: Any) -> Publisher:
        made.append(Publisher(BrokerAddress(url, **options), name="test-out"))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def publisher(rabbitmq_url: str, publishers: Callable[..., Publisher]) -> Publisher:
    return publishers(rabbitmq_url)
