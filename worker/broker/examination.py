"""What does the broker say when asked? Its version, our queues as they are, what we may do."""

import uuid
from dataclasses import dataclass
from typing import Literal

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from worker.broker.connection import BrokerAddress, why
from worker.broker.topology import Arguments, QueueSpec, Topology

#: AMQP reply codes: access refused; declared before with other arguments.
_REFUSED, _PRECONDITION_FAILED = 403, 406


class BrokerRefuses(Exception):  # noqa: N818 - what the broker said
    """There is a broker, and it does not want us: wrong password, no such virtual host."""


class BrokerNotReached(Exception):  # noqa: N818 - a finding
    """There is no broker to be reached at the moment."""


@dataclass(frozen=True)
class QueueFound:
    """A queue as it is.

    Attributes:
        wanted: the arguments that the settings ask for; None for the main queue, whose
            arguments are its owner's.
        state: `missing`; `as wanted`; `otherwise`, with other arguments.
        messages, consumers: 0 where it is missing.
    """

    name: str
    wanted: Arguments | None
    state: Literal["missing", "as wanted", "otherwise"]
    messages: int = 0
    consumers: int = 0


@dataclass(frozen=True)
class BrokerFound:
    """A broker that let us in.

    Attributes:
        not_allowed: a clause for what its user may not do; empty if all is well.
    """

    product: str
    version: str
    queues: tuple[QueueFound, ...]
    not_allowed: str


def greet(address: BrokerAddress) -> None:
    """Log in and out. Raises `BrokerRefuses` or `BrokerNotReached`."""
    _connect(address).close()


def examine(address: BrokerAddress, topology: Topology) -> BrokerFound:
    """Look at everything; nothing is left changed.

    Raises:
        BrokerRefuses: it does not let us in.
        BrokerNotReached: there is none at the moment.
    """
    connection = _connect(address)
    try:
        # The library keeps it where it has no public name on a blocking connection.
        told = getattr(connection, "_impl").server_properties or {}  # noqa: B009
        queues = [_look(connection, QueueSpec(topology.main), main=True)]
        queues += [_look(connection, spec) for spec in topology.own_queues]
        return BrokerFound(
            product=str(told.get("product", "unknown")),
            version=str(told.get("version", "unknown")),
            queues=tuple(queues),
            not_allowed=_try_out(connection, topology),
        )
    except pika.exceptions.AMQPError as error:
        raise BrokerNotReached(why(error)) from None
    finally:
        if connection.is_open:
            connection.close()


def apply(address: BrokerAddress, topology: Topology) -> None:
    """Declare what is missing. Raises as `examine`."""
    connection = _connect(address)
    try:
        topology.declare(connection.channel())
    except pika.exceptions.AMQPError as error:
        raise BrokerRefuses(why(error)) from None
    finally:
        if connection.is_open:
            connection.close()


def _connect(address: BrokerAddress) -> BlockingConnection:
    try:
        return pika.BlockingConnection(address.parameters("examination"))
    except (
        pika.exceptions.ProbableAuthenticationError,
        pika.exceptions.ProbableAccessDeniedError,
        pika.exceptions.AuthenticationError,
    ) as error:
        raise BrokerRefuses(why(error)) from None
    except pika.exceptions.ConnectionClosedByBroker as error:
        raise BrokerRefuses(why(error)) from None
    except (pika.exceptions.AMQPError, OSError) as error:
        raise BrokerNotReached(why(error)) from None


def _look(connection: BlockingConnection, spec: QueueSpec, *, main: bool = False) -> QueueFound:
    wanted = None if main else spec.arguments
    channel = connection.channel()
    try:
        found = channel.queue_declare(spec.name, passive=True).method
    except pika.exceptions.ChannelClosedByBroker:
        return QueueFound(spec.name, wanted, "missing")
    same = main or _is_declared_so(channel, spec)
    if channel.is_open:
        channel.close()
    state: Literal["as wanted", "otherwise"] = "as wanted" if same else "otherwise"
    return QueueFound(spec.name, wanted, state, found.message_count, found.consumer_count)


def _is_declared_so(channel: BlockingChannel, spec: QueueSpec) -> bool:
    """Whether a queue that exists has these arguments: a broker refuses others."""
    try:
        channel.queue_declare(spec.name, durable=True, arguments=dict(spec.arguments))
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code not in (_PRECONDITION_FAILED, _REFUSED):
            raise
        return False
    return True


def _try_out(connection: BlockingConnection, topology: Topology) -> str:
    """Declare, write to and read from a queue of our own names; what was refused, or empty."""
    channel = connection.channel()
    name = f"{topology.queue}.doctor.{uuid.uuid4().hex[:8]}"
    try:
        channel.queue_declare(name, exclusive=True, arguments={"x-queue-type": "classic"})
        channel.confirm_delivery()
        channel.basic_publish("", name, b"?", mandatory=True)
        method, _, _ = channel.basic_get(name, auto_ack=True)
        channel.queue_delete(name)
    except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.NackError) as error:
        return why(error)
    except pika.exceptions.UnroutableError:
        return f"a message to {name} was not routed"
    return "" if method is not None else f"a message to {name} did not arrive"
