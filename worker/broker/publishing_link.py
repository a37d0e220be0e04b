"""The publisher's own thread: one connection, one channel in confirm mode, opened when needed."""

import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from worker.broker.confirms import Publication, Unconfirmed
from worker.broker.connection import Backoff, BrokerAddress, why
from worker.observability import metrics

log = structlog.get_logger()

#: AMQP's delivery mode of a message that survives a restart of the broker.
_PERSISTENT = 2

#: A message that was unanswered when its connection broke is written once more; a receiver must
#: bear duplicates anyway.
_TRIES = 2

#: Time for a polite good-bye to the broker, seconds.
CLOSE_SECONDS = 2.0


class PublishingLink:
    """An event loop with one connection, which nothing but its own callbacks waits for.

    Everything but `submit`, `close` and `state` runs on that thread.
    """

    def __init__(self, address: BrokerAddress, name: str) -> None:
        self._address, self._name = address, name
        self._parameters = address.parameters(name)
        self._waiting: deque[Publication] = deque()
        self._unconfirmed = Unconfirmed()
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._loop = IOLoop()
        self._closing = self._ended = False
        self._connection: SelectConnection | None = None
        self._channel: Channel | None = None
        self._connect_at = 0.0
        self._blocked_because: str | None = None
        self._last_error = "not connected yet"

    # --- from other threads

    def submit(self, publication: Publication) -> None:
        """Send this as soon as possible."""
        self._waiting.append(publication)
        self._call(self._pump)

    def close(self) -> None:
        """End the thread soon."""
        self._closing = True
        self._call(self._begin_close)

    @property
    def state(self) -> str:
        """What the link is waiting for, for an error's text."""
        if self._blocked_because is not None:
            return f"the broker takes no messages: {self._blocked_because}"
        return "connected" if self._channel is not None else self._last_error

    def _call(self, function: Callable[[], None]) -> None:
        with self._lock:
            if not self._ended:
                self._loop.add_callback_threadsafe(function)

    # --- the thread

    def run(self) -> None:
        """Serve until closed."""
        while True:
            broke: Exception | None = None
            try:
                self._loop.start()
            except Exception as error:
                # A defect in a callback or in the library: nothing of this connection is sure.
                log.exception("publisher_loop_broke", publisher=self._name)
                broke = error
            with self._lock:
                self._loop.close()
                if self._closing:
                    self._ended = True
                    break
                self._loop = IOLoop()
                self._loop.add_callback_threadsafe(self._pump)
            if broke is not None:
                self._lost(why(broke))  # it connects anew, on the new loop
        for publication in (*self._unconfirmed.take_all(), *self._waiting):
            publication.fail("the publisher was closed")

    def _pump(self) -> None:
        """Send what waits, or see to it that there is a connection to send it on."""
        while self._waiting and self._waiting[0].done.cancelled():
            self._waiting.popleft()
        if not self._waiting or self._blocked_because is not None or self._closing:
            return
        if self._connection is None:
            self._connect()
        elif self._channel is not None:
            self._write_all(self._channel)

    def _write_all(self, channel: Channel) -> None:
        while self._waiting:
            publication = self._waiting.popleft()
            if publication.done.cancelled():
                continue
            publication.tries += 1
            self._unconfirmed.wrote(publication)
            channel.basic_publish(
                publication.exchange,
                publication.routing_key,
                publication.body,
                BasicProperties(
                    content_type=publication.content_type,
                    delivery_mode=_PERSISTENT,
                    message_id=publication.message_id,
                    headers=publication.headers,
                ),
                mandatory=True,
            )

    # --- the connection

    def _connect(self) -> None:
        wait = self._connect_at - time.monotonic()
        if wait > 0:
            self._loop.call_later(wait, self._pump)
            return
        # For the next time, unless this one gets as far as an open channel.
        self._connect_at = time.monotonic() + self._backoff.next_seconds()
        self._connection = SelectConnection(
            self._parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=self._loop,
        )

    def _on_open(self, connection: SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        connection.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)

        def ready(_frame: object) -> None:
            self._channel = channel
            self._backoff.reset()
            self._connect_at = 0.0
            metrics.BROKER_CONNECTED.labels(self._name).set(1)
            log.info("broker_connected", publisher=self._name, broker=str(self._address))
            self._pump()

        channel.confirm_delivery(self._on_confirm, callback=ready)

    def _on_open_error(self, _connection: SelectConnection, error: BaseException) -> None:
        log.warning("broker_not_reached", publisher=self._name, reason=why(error))
        self._lost(why(error))

    def _on_close(self, _connection: SelectConnection, error: BaseException) -> None:
        if not self._closing:
            log.warning("broker_lost", publisher=self._name, reason=why(error))
            metrics.BROKER_LOSSES.labels(self._name).inc()
        self._lost(why(error))
        if self._closing:
            self._loop.stop()

    def _on_channel_closed(self, _channel: Channel, error: BaseException) -> None:
        """A channel that dies alone takes its connection along: there is only this one on it."""
        self._channel = None
        self._retry_or_fail(why(error))
        if self._connection is not None and self._connection.is_open and not self._closing:
            log.warning("broker_channel_lost", publisher=self._name, reason=why(error))
            metrics.CHANNEL_LOSSES.labels(self._name).inc()
            self._connection.close()

    def _lost(self, reason: str) -> None:
        self._connection = self._channel = self._blocked_because = None
        self._last_error = f"no connection: {reason}"
        metrics.BROKER_CONNECTED.labels(self._name).set(0)
        self._retry_or_fail(reason)
        if not self._closing:
            self._pump()

    def _retry_or_fail(self, reason: str) -> None:
        again = []
        for publication in self._unconfirmed.take_all():
            if publication.tries < _TRIES and not publication.done.cancelled():
                again.append(publication)
            else:
                publication.fail(f"not confirmed before the connection was lost: {reason}")
        self._waiting.extendleft(reversed(again))

    def _begin_close(self) -> None:
        if self._connection is None or not self._connection.is_open:
            self._loop.stop()
            return
        # A blocked broker does not answer a good-bye.
        self._loop.call_later(CLOSE_SECONDS, self._loop.stop)
        self._connection.close()

    # --- what the broker says

    def _on_blocked(self, _connection: SelectConnection, frame: Method) -> None:
        self._blocked_because = str(frame.method.reason)
        log.warning("broker_blocks_publishers", publisher=self._name, reason=self._blocked_because)

    def _on_unblocked(self, _connection: SelectConnection, _frame: Method) -> None:
        self._blocked_because = None
        log.info("broker_unblocks_publishers", publisher=self._name)
        self._pump()

    def _on_return(
        self, _channel: Channel, method: Basic.Return, _properties: BasicProperties, body: bytes
    ) -> None:
        reason = f"{method.reply_code} {method.reply_text}"
        self._unconfirmed.returned(method.exchange, method.routing_key, body, reason)

    def _on_confirm(self, frame: Method) -> None:
        answer: Basic.Ack | Basic.Nack = frame.method
        acked = isinstance(answer, Basic.Ack)
        self._unconfirmed.answered(answer.delivery_tag, multiple=answer.multiple, acked=acked)
