"""Messages in: a thread that alone owns its connection and keeps it alive while others work.

Heartbeats and acknowledgements never wait for a job: this thread does nothing but pump the
connection, and everybody else hands it small commands.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

import pika
import pika.exceptions
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from worker.broker.command_queue import CommandQueue
from worker.broker.connection import Backoff, BrokerAddress, why
from worker.broker.delivery import Delivery
from worker.broker.slot_channel import Settlement, SlotChannel
from worker.observability import metrics

log = structlog.get_logger()

#: Longest time between two looks at slots and commands, seconds; a command ends it at once.
_PUMP_SECONDS = 0.5

#: A session that has lived so long was not lost in a row with the one before, seconds.
_STEADY_SECONDS = 30.0


class Consumer:
    """Feeds slots with messages, one each, from the first of `queues` that has any.

    Args:
        address: the broker.
        queues: where to look, in this order; all but the last are looked at before listening.
        slots: how many messages are held at a time.
        on_delivery: called on the broker thread for each message; must return at once.
        declare: called with a channel on each connection, before anything is consumed, and
            again when a channel was lost.
        name: names the thread, the connection and the log lines.
        priority: asked on the broker thread about each free slot, in every round: at which of the
            broker's consumer priorities the slot looks for work now (0 is the usual one), or None
            if it is to take nothing. Tell of a change with `look_again`.
        give_up_after_seconds: without a session for so long, `on_give_up` is called, once.
        on_give_up: called on the broker thread, which goes on trying.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        queues: Sequence[str],
        slots: int,
        on_delivery: Callable[[Delivery], None],
        declare: Callable[[BlockingChannel], None],
        name: str,
        priority: Callable[[int], int | None] = lambda slot: 0,
        give_up_after_seconds: float = 600.0,
        on_give_up: Callable[[], None] | None = None,
    ) -> None:
        if slots < 1 or not queues:
            raise ValueError("a consumer needs at least one slot and one queue")
        self._address, self._declare, self._name = address, declare, name
        self._priority = priority
        self._give_up_after, self._on_give_up = give_up_after_seconds, on_give_up
        self._slots = [
            SlotChannel(
                index,
                queues=queues,
                name=name,
                on_delivery=on_delivery,
                declare_again=self._declare_on,
            )
            for index in range(slots)
        ]
        self._parameters = address.parameters(name)
        self._thread = threading.Thread(target=self._run, name=f"broker-{name}", daemon=True)
        self._commands = CommandQueue(self._thread, self._wake)
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._accepting = True
        self._connection: BlockingConnection | None = None
        self._last_session_at = self._seen_alive_at = self._worked_at = 0.0
        self.connected = False
        self.beat_at = time.monotonic()
        self.generation = 0
        self.gave_up = False

    # --- what other threads call

    def start(self) -> None:
        """Connect and begin to deliver; returns at once."""
        self._commands.open()
        self._last_session_at = time.monotonic()
        self._thread.start()

    def stop_consuming(self) -> None:
        """Take no further message; those held can still be settled. Returns once that holds."""
        self._accepting = False
        self._commands.call(self._tend_all)

    def close(self) -> None:
        """Disconnect; what is still held goes back to its queue. Returns at once, see `join`."""
        self._closing.set()
        self._wake()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the thread's end after `close`; True if it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def ack(self, delivery: Delivery) -> bool:
        """Acknowledge. True once it is written; False, and nothing is, if its channel is gone.

        The slot stays busy until `free`.
        """
        return self._settle(delivery, "ack")

    def requeue(self, delivery: Delivery) -> bool:
        """Give the message back to its queue, with nack; True and False as for `ack`."""
        return self._settle(delivery, "requeue")

    def holds(self, delivery: Delivery) -> bool:
        """Whether the broker has surely not given this delivery to anybody else.

        True only while its channel stands and the connection was seen alive within a heartbeat:
        a process that stood still for longer finds its deliveries in other hands.
        """
        fresh = time.monotonic() - self._seen_alive_at < self._address.heartbeat_seconds
        return fresh and self._slots[delivery.slot].generation == delivery.generation

    def look_again(self) -> None:
        """What the slots may take has changed: ask for each of them now. Returns at once."""
        self._wake()

    def free(self, slot: int) -> None:
        """The slot takes its next message. What it holds unsettled goes back to its queue."""
        self._commands.submit(lambda: self._free(self._slots[slot]))

    @property
    def silent_seconds(self) -> float:
        """Time since the thread last went round; 0 before its start and once it is to end."""
        idle = self._thread.ident is None or self._closing.is_set()
        return 0.0 if idle else time.monotonic() - self.beat_at

    @property
    def working(self) -> bool:
        """Whether a slot works, whatever became of its message."""
        return any(slot.busy for slot in self._slots)

    @property
    def idle_seconds(self) -> float:
        """Time since a slot last worked; 0 while one does or while there is no session."""
        busy = self.working or not self.connected
        return 0.0 if busy else time.monotonic() - self._worked_at

    def message_count(self, queue: str) -> int | None:
        """Messages ready in a queue; None without a session, or where there is no such queue."""
        counted: list[int] = []
        self._commands.call(lambda: self._count(queue, counted))
        return counted[0] if counted else None

    # --- commands

    def _count(self, queue: str, counted: list[int]) -> bool:
        if self._connection is None:
            return False
        channel = self._connection.channel()
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
            counted.append(channel.queue_declare(queue, passive=True).method.message_count)
            channel.close()
        return bool(counted)

    def _settle(self, delivery: Delivery, how: Settlement) -> bool:
        slot = self._slots[delivery.slot]
        if slot.generation != delivery.generation:
            return False
        return self._commands.call(lambda: slot.settle(delivery, how))

    def _free(self, slot: SlotChannel) -> bool:
        slot.free()
        return True

    def _wake(self) -> None:
        self._awake.set()
        connection = self._connection
        if connection is not None:
            # Closed meanwhile: then its thread is awake already.
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.add_callback_threadsafe(lambda: None)

    def _run_commands(self) -> None:
        self.beat_at = time.monotonic()
        self._commands.run()

    # --- the broker thread

    def _run(self) -> None:
        backoff = Backoff()
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._session()
            except Exception as error:
                # Not only AMQPError: a connection that dies at the wrong moment ends in bare
                # ValueErrors and failed assertions inside the library.
                reason = why(error)
            else:
                reason = "closed"
            self._after_session(reason)
            if self._closing.is_set():
                break
            if time.monotonic() - began > _STEADY_SECONDS:
                backoff.reset()
            self._wait(backoff.next_seconds())
        self._commands.close()

    def _session(self) -> None:
        """Connect, declare and serve until closed. Raises whatever ends the connection."""
        connection = pika.BlockingConnection(self._parameters)
        try:
            self._declare_on(connection)
            self._seen_alive_at = self._worked_at = time.monotonic()
            self._connection, self.connected = connection, True
            self.generation += 1
            metrics.BROKER_CONNECTED.labels(self._name).set(1)
            log.info("broker_connected", consumer=self._name, broker=str(self._address))
            while not self._closing.is_set():
                self._run_commands()
                self._tend_all()
                connection.process_data_events(time_limit=_PUMP_SECONDS)
                self._seen_alive_at = time.monotonic()
        finally:
            self._connection = None
            if connection.is_open:
                connection.close()

    def _declare_on(self, connection: BlockingConnection) -> None:
        channel = connection.channel()
        try:
            self._declare(channel)
        finally:
            if channel.is_open:
                channel.close()

    def _tend_all(self) -> bool:
        connection = self._connection
        if connection is None:
            return False
        for slot in self._slots:
            free = self._accepting and not slot.busy
            slot.tend(connection, priority=self._priority(slot.index) if free else None)
        if self.working:
            self._worked_at = time.monotonic()
        return True

    def _after_session(self, reason: str) -> None:
        was_connected, self.connected = self.connected, False
        held = sum([slot.forget() for slot in self._slots])
        metrics.BROKER_CONNECTED.labels(self._name).set(0)
        if was_connected:
            self._last_session_at = time.monotonic()
            metrics.BROKER_LOSSES.labels(self._name).inc(not self._closing.is_set())
        if not self._closing.is_set():
            event = "broker_lost" if was_connected else "broker_not_reached"
            log.warning(
                event, consumer=self._name, broker=str(self._address), reason=reason, held=held
            )
        self._run_commands()

    def _wait(self, seconds: float) -> None:
        """Let `seconds` pass, answering commands (all of them too late) meanwhile."""
        until = time.monotonic() + seconds
        while not self._closing.is_set():
            self._awake.clear()
            self._run_commands()
            now = time.monotonic()
            give_up_at = self._last_session_at + self._give_up_after
            if now >= give_up_at and not self.gave_up:
                self.gave_up = True
                log.error("broker_given_up", consumer=self._name, seconds=self._give_up_after)
                if self._on_give_up is not None:
                    self._on_give_up()
            if now >= until:
                return
            self._awake.wait(min(until, until if self.gave_up else give_up_at) - now)
