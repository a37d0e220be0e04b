"""How is the broker reached? Address and time-outs as one value, and the waits between tries."""

import random
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorPhaseErrorBase,
)

from worker import __version__
from worker.broker.odd_headers import read_odd_headers

#: First and longest upper bound of the wait between two tries, seconds.
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is, and how patient to be with it. Its text never shows the password.

    Attributes:
        url: `amqp://` or `amqps://` address. `heartbeat`, `socket_timeout` and
            `blocked_connection_timeout` in its query win over the fields below.
        heartbeat_seconds: AMQP heartbeat.
        connect_timeout_seconds: longest time for TCP, and for the whole of TCP, TLS and AMQP
            one and a half times that.
        blocked_timeout_seconds: how long the broker may refuse to read (memory or disk alarm)
            before the connection is given up.
    """

    url: str = field(repr=False)
    heartbeat_seconds: int = 60
    connect_timeout_seconds: float = 10.0
    blocked_timeout_seconds: float = 60.0

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        user = f"{unquote(parts.username)}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{user}{parts.hostname}{port}{parts.path}"

    def parameters(self, connection_name: str) -> pika.URLParameters:
        """What pika connects with; the broker lists the connection under `connection_name`.

        From now on pika reads whatever headers a message has, in the whole process.

        Raises:
            ValueError: the address is not an AMQP one.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError("the broker's address must be amqp://… or amqps://… with a host")
        read_odd_headers()
        given = parse_qs(parts.query)
        parameters = pika.URLParameters(self.url)
        if "heartbeat" not in given:
            parameters.heartbeat = self.heartbeat_seconds
        if "blocked_connection_timeout" not in given:
            parameters.blocked_connection_timeout = self.blocked_timeout_seconds
        if "socket_timeout" not in given:
            parameters.socket_timeout = self.connect_timeout_seconds
            parameters.stack_timeout = 1.5 * self.connect_timeout_seconds
        # One try a call: the waits between tries are ours.
        parameters.connection_attempts = 1
        parameters.client_properties = {
            "connection_name": connection_name,
            "product": "lora-worker",
            "version": __version__,
        }
        return parameters


class Backoff:
    """Waits that double from try to try, each drawn at random between 0 and its bound.

    "Full jitter": many workers that lost one broker together do not come back together.
    """

    def __init__(
        self,
        first_seconds: float = FIRST_BACKOFF_SECONDS,
        longest_seconds: float = LONGEST_BACKOFF_SECONDS,
        *,
        random_source: random.Random | None = None,
    ) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._random = random_source or random.Random()
        self._bound = first_seconds

    @property
    def bound_seconds(self) -> float:
        """Upper bound of the next wait."""
        return self._bound

    def next_seconds(self) -> float:
        """How long to wait now, seconds."""
        wait = self._random.uniform(0, self._bound)
        self._bound = min(2 * self._bound, self._longest)
        return wait

    def reset(self) -> None:
        """It worked: start over from the first bound."""
        self._bound = self._first


def why(error: BaseException) -> str:
    """One line on what went wrong with a connection or a channel; holds no secret."""
    if isinstance(error, AMQPConnectionWorkflowFailed) and error.exceptions:
        return why(error.exceptions[-1])
    if isinstance(error, AMQPConnectorPhaseErrorBase):
        return why(error.exception)
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    if isinstance(error, pika.exceptions.AMQPConnectionError) and error.args:
        inner = error.args[0]
        if isinstance(inner, BaseException):
            return why(inner)
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
