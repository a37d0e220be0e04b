"""What does the broker carry? Its own figures, asked of a node by `rabbitmqctl`."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from worker.demo.rabbitmq_node import RabbitMQNode

#: Parts of the node's memory that connections and their channels take.
_CONNECTION_MEMORY = (
    "connection_readers",
    "connection_writers",
    "connection_channels",
    "connection_other",
)

#: One counter of `rabbit_global_counters`, summed over protocols and types of queues.
_COUNTER = re.compile(r"(messages_\w+?)_total\s*=>\s*(\d+)")


@dataclass(frozen=True)
class BrokerLoad:
    """One moment.

    Attributes:
        connections, channels, consumers, queues: how many are open.
        processes: of the Erlang machine, the node's own included.
        connection_bytes: memory of connections and channels. queue_bytes: of queues.
        messages: since the node's start, by what was done with them (`acknowledged`, …).
        packets_in, packets_out: TCP packets on the open connections since each was opened.
    """

    connections: int
    channels: int
    consumers: int
    queues: int
    processes: int
    connection_bytes: int
    queue_bytes: int
    messages: Counter[str]
    packets_in: int
    packets_out: int


def broker_load(node: RabbitMQNode) -> BrokerLoad:
    """Ask a running node."""
    connections = _rows(node, "list_connections", "channels", "recv_cnt", "send_cnt")
    status = json.loads(node.ctl("status", "--formatter", "json"))
    messages: Counter[str] = Counter()
    for name, count in _COUNTER.findall(node.ctl("eval", "rabbit_global_counters:overview().")):
        messages[name.removeprefix("messages_")] += int(count)
    return BrokerLoad(
        connections=len(connections),
        channels=sum(row["channels"] for row in connections),
        consumers=len(_rows(node, "list_consumers")),
        queues=len(_rows(node, "list_queues", "name")),
        processes=status["processes"]["used"],
        connection_bytes=sum(status["memory"][name] for name in _CONNECTION_MEMORY),
        queue_bytes=status["memory"]["queue_procs"],
        messages=messages,
        packets_in=sum(row["recv_cnt"] for row in connections),
        packets_out=sum(row["send_cnt"] for row in connections),
    )


def _rows(node: RabbitMQNode, command: str, *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(node.ctl(command, "--formatter", "json", *columns))
    return rows
