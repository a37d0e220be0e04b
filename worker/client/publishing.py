"""How does a backend publish a job? A plain declare, one message, confirmed by the broker."""

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress, why
from worker.contract.errors import InvalidJob
from worker.contract.job import MESSAGE_TYPE, parse_message
from worker.contract.shapes import new_job_id

__all__ = ["InvalidJob", "LoraJobClient", "PublishFailed"]

#: AMQP's delivery mode of a message that survives a restart of the broker.
_PERSISTENT = 2


class LoraJobClient:
    """Publishes jobs; connects at the first one and stays connected.

    A message is checked by the contract before it is sent, and a job id is returned once the
    broker has it on disk or in every replica. Any thread may call it: one message goes out at a
    time, so give busy threads a client each. A process that was forked connects anew.
    """

    def __init__(
        self, url: str, *, queue: str = MESSAGE_TYPE, max_images: int = 1000, name: str = "backend"
    ) -> None:
        """Make a client; nothing is connected yet.

        Args:
            url: the broker, `amqp://…` or `amqps://…`.
            queue: where workers listen.
            max_images: the workers' `MAX_IMAGES`.
            name: what the broker lists the connection as.
        """
        self._address, self._name = BrokerAddress(url), name
        self._queue, self._max_images = queue, max_images
        self._lock = threading.Lock()
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._process = os.getpid()

    def submit(
        self,
        *,
        style_id: int,
        images: Sequence[str | Mapping[str, str]],
        webhook_url: str | None = None,
        trigger_word: str | None = None,
        tags: Sequence[str] = (),
        caption_template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        class_images: Sequence[str | Mapping[str, str]] = (),
        job_id: str | None = None,
    ) -> str:
        """Have a style trained; returns the job's id.

        Args:
            style_id: your key of the result, repeated in every webhook.
            images: addresses, or mappings with `url` and `caption`.
            webhook_url: base of the webhooks, unless the operator has set one for all.
            trigger_word: the word that calls the style.
            tags: words of the caption template.
            caption_template: caption of a picture without one.
            parameters: training parameters, by the contract's names.
            class_images: like `images`, for prior preservation.
            job_id: the job's identity; one is made if None. The same id again is the same job, so
                after `PublishFailed` it is safe to submit once more under one that you chose.

        Raises:
            InvalidJob: `problems` has a `(field, sentence)` for each broken field; nothing is sent.
            PublishFailed: the broker cannot be reached, or did not take the message.
        """
        given = {
            "job_id": job_id or new_job_id(),
            "style_id": style_id,
            "image_urls": _plain(images),
            "class_images": _plain(class_images) or None,
            "webhook_url": webhook_url,
            "trigger_word": trigger_word,
            "tags": list(tags),
            "caption_template": caption_template,
            "parameters": dict(parameters or {}),
        }
        return self.publish({name: value for name, value in given.items() if value is not None})

    def publish(self, message: Mapping[str, Any] | bytes) -> str:
        """Publish a whole message of either shape, bytes as they are; returns the job's id.

        A message that names no id gets one as AMQP's `message_id`. Raises as `submit` does.
        """
        body = message if isinstance(message, bytes) else json.dumps(dict(message)).encode()
        parsed = parse_message(body, max_images=self._max_images)
        job_id = uuid.uuid4().hex if parsed.id_is_digest else parsed.job.job_id
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=_PERSISTENT,
            message_id=job_id,
            timestamp=int(time.time()),
        )
        with self._lock:
            self._send(body, properties)
        return job_id

    def close(self) -> None:
        """Disconnect. A later message connects again."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, body: bytes, properties: pika.BasicProperties) -> None:
        """Once more on a new connection if this one breaks: it may have been idle for long."""
        try:
            try:
                self._send_once(body, properties)
            except pika.exceptions.ConnectionBlockedTimeout:
                raise  # it would be blocked again
            except (pika.exceptions.AMQPConnectionError, pika.exceptions.ChannelWrongStateError):
                if self._connection is None:
                    raise  # not even reached
                self._drop()
                self._send_once(body, properties)
        except pika.exceptions.UnroutableError:
            raise PublishFailed(f"queue {self._queue!r}: no queue took the message") from None
        except pika.exceptions.NackError:
            raise PublishFailed(f"queue {self._queue!r}: refused by the broker (nack)") from None
        except (pika.exceptions.AMQPError, OSError) as error:
            self._drop()
            raise PublishFailed(f"queue {self._queue!r}: {why(error)}") from None

    def _send_once(self, body: bytes, properties: pika.BasicProperties) -> None:
        channel = self._open_channel()
        channel.queue_declare(self._queue, durable=True)
        channel.basic_publish("", self._queue, body, properties, mandatory=True)

    def _open_channel(self) -> BlockingChannel:
        if self._process != os.getpid():
            # The connection is the parent's; closing it here would end it there.
            self._connection = self._channel = None
            self._process = os.getpid()
        if self._connection is None:
            self._connection = pika.BlockingConnection(self._address.parameters(self._name))
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self._channel

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and connection.is_open and self._process == os.getpid():
            connection.close()


def _plain(images: Sequence[str | Mapping[str, str]]) -> list[str | dict[str, str]]:
    return [item if isinstance(item, str) else dict(item) for item in images]
