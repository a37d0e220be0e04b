"""How does a backend publish a job? One connection, a plain declare, one confirmed message."""

import pika
import pika.exceptions

from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress, why


def submit(address: BrokerAddress, queue: str, body: bytes, *, message_id: str | None) -> None:
    """Publish `body` to `queue`, persistent, as the contract tells backends to.

    Raises:
        PublishFailed: the broker cannot be reached, or did not take the message.
    """
    try:
        connection = pika.BlockingConnection(address.parameters("submit"))
        try:
            channel = connection.channel()
            channel.queue_declare(queue, durable=True)
            channel.confirm_delivery()
            properties = pika.BasicProperties(
                content_type="application/json", delivery_mode=2, message_id=message_id
            )
            channel.basic_publish("", queue, body, properties, mandatory=True)
        finally:
            if connection.is_open:
                connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        raise PublishFailed(f"queue {queue!r}: {why(error)}") from None
