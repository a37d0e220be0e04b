"""What happened between two moments: counters that only grow, and their growth."""

from collections import Counter
from dataclasses import dataclass

from benchmarks.broker_load import BrokerLoad
from benchmarks.objects import RequestKind


@dataclass(frozen=True)
class Moment:
    """Counters that only grow, at one moment.

    Attributes:
        monotonic_seconds: when.
        cpu_seconds: by component.
        requests: to the store. webhooks: to the receiver, by event.
        broker: None where the broker is not ours to ask.
    """

    monotonic_seconds: float
    cpu_seconds: dict[str, float]
    requests: Counter[RequestKind]
    webhooks: Counter[str]
    broker: BrokerLoad | None


@dataclass(frozen=True)
class Period:
    """What happened between two moments; figures as in `Moment`.

    Attributes:
        messages: at the broker, by what was done with them.
        packets: TCP packets to and from the broker, on connections that were open all the time.
    """

    seconds: float
    cpu_seconds: dict[str, float]
    requests: Counter[RequestKind]
    webhooks: Counter[str]
    messages: Counter[str]
    packets: int


def between(before: Moment, after: Moment) -> Period:
    """The growth of every counter."""
    messages: Counter[str] = Counter()
    packets = 0
    if before.broker is not None and after.broker is not None:
        messages = after.broker.messages - before.broker.messages
        packets = _packets(after.broker) - _packets(before.broker)
    return Period(
        seconds=after.monotonic_seconds - before.monotonic_seconds,
        cpu_seconds={
            name: seconds - before.cpu_seconds[name] for name, seconds in after.cpu_seconds.items()
        },
        requests=after.requests - before.requests,
        webhooks=after.webhooks - before.webhooks,
        messages=messages,
        packets=packets,
    )


def _packets(load: BrokerLoad) -> int:
    return load.packets_in + load.packets_out
