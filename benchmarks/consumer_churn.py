"""What does it cost a queue that others listen to it? `python -m benchmarks.consumer_churn`.

A slot listens until it has a message and listens again when it is free: a `basic.consume` and a
`basic.cancel` for each message. The queue keeps its consumers in one list, so both take longer the
more there are. Measured on one queue with a growing crowd of silent consumers. The last line is
one JSON object: milliseconds of a pair as its caller sees them, and of the broker's processor.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pika
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks import processes
from worker.demo.rabbitmq_node import RabbitMQNode

#: Consumers of the queue beside the one that comes and goes.
CROWDS = (0, 1_000, 10_000, 40_000)

#: Pairs that are measured with each crowd.
PAIRS = 200

#: Channels that the crowd is spread over.
CHANNELS = 40

_QUEUE = "listened-to"


def grow(channels: Sequence[BlockingChannel], already: int, wanted: int) -> None:
    """Add consumers until there are `wanted`."""
    for number in range(already, wanted):
        channel = channels[number % len(channels)]
        channel.basic_consume(_QUEUE, lambda *_: None, consumer_tag=f"crowd-{number}")


def come_and_go(channel: BlockingChannel) -> float:
    """One pair, seconds."""
    began = time.perf_counter()
    tag = channel.basic_consume(_QUEUE, lambda *_: None)
    channel.basic_cancel(tag)
    return time.perf_counter() - began


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder, RabbitMQNode(Path(folder)) as node:
        assert node.pid is not None
        address = pika.URLParameters(node.url)
        with contextlib.closing(pika.BlockingConnection(address)) as connection:
            single = connection.channel()
            single.queue_declare(_QUEUE, durable=True)
            channels = [connection.channel() for _ in range(CHANNELS)]
            already = 0
            for crowd in CROWDS:
                began = time.perf_counter()
                grow(channels, already, crowd)
                grown_seconds, already = time.perf_counter() - began, crowd
                cpu_before = processes.cpu_seconds(node.pid)
                pairs = [come_and_go(single) for _ in range(PAIRS)]
                cpu_seconds = processes.cpu_seconds(node.pid) - cpu_before
                row = {
                    "consumers": crowd,
                    "grown_in_seconds": round(grown_seconds, 1),
                    "pair_milliseconds": round(1000 * statistics.median(pairs), 2),
                    "broker_cpu_milliseconds": round(1000 * cpu_seconds / PAIRS, 2),
                }
                rows.append(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"pairs": PAIRS, "processors": os.cpu_count(), "crowds": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
