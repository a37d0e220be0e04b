"""What KEDA counts: a job that is not done is one message, wherever that lies."""

import re
from pathlib import Path

import pytest
import yaml

from tests.live_worker import eventually

MANIFEST = Path(__file__).parents[3] / "config/kubernetes/overlays/warm-pool/scaled-object.yaml"
QUEUES = re.compile(
    yaml.safe_load(MANIFEST.read_text())["spec"]["triggers"][0]["metadata"]["queueName"]
)


@pytest.fixture
def counted(site, private_rabbitmq_node, private_rabbitmq_url):
    """Messages, unacknowledged ones too, of the queues that the trigger matches."""
    site.broker_url = private_rabbitmq_url
    vhost = private_rabbitmq_url.rpartition("/")[2]

    def count():
        rows = private_rabbitmq_node.ctl("list_queues", "-p", vhost, "name", "messages")
        found = dict(row.split("\t") for row in rows.splitlines() if row[-1:].isdigit())
        return {name: int(n) for name, n in found.items() if QUEUES.search(name) and n != "0"}

    return count


@pytest.mark.parametrize(
    ("hand_over_after", "parked", "where"),
    [
        ("600", "600", {"model_training": 2}),  # one of them unacknowledged
        ("1", "600", {"model_training": 1, "model_training.parked": 1}),
        ("1", "1", {"model_training": 1, "model_training.resume": 1}),
    ],
)
def test_a_job_counts_once_until_it_is_done(site, counted, hand_over_after, parked, where):
    running = site.message(parameters={"max_train_steps": 50_000, "checkpoint_seconds": 3600})
    settings = {"HANDOVER_AFTER_SECONDS": hand_over_after, "PARKED_SECONDS": parked}
    with site.worker(**settings, PREFETCH_SECONDS="0") as worker:
        site.publish(running)
        worker.wait_for_log("job_taken_up")
        site.publish(site.message(style_id=11))
        eventually(lambda: counted() == where, str(where), 120)
        site.client.put_object(
            Bucket=site.results, Key=f"jobs/{running['job_id']}/cancel.json", Body=b"{}"
        )
        # Parked copies that are not back yet are all that may be left.
        left = {name for name in where if name.endswith(".parked")}
        eventually(lambda: set(counted()) == left, "both jobs are done", 120)
