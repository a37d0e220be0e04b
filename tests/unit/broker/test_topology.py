"""The table of the broker, as data."""

import pytest

from worker.broker.topology import Topology, spell


def arguments(topology: Topology) -> dict[str, dict[str, str | int]]:
    return {queue.name: dict(queue.arguments) for queue in topology.own_queues}


def test_every_queue_is_named_after_the_main_one():
    assert set(arguments(Topology())) == {
        "model_training.resume",
        "model_training.parked",
        "model_training.retry.30s",
        "model_training.retry.2m",
        "model_training.retry.10m",
        "model_training.retry.1h",
        "model_training.dead",
        "model_training.events",
        "model_training.events.retry.30s",
        "model_training.events.retry.2m",
        "model_training.events.retry.10m",
        "model_training.events.retry.1h",
        "model_training.events.retry.6h",
        "model_training.events.dead",
    }
    assert Topology(queue="styles").parked == "styles.parked"


def test_the_main_queue_is_not_ours_to_declare_with_arguments():
    topology = Topology(queue_type="quorum")
    assert topology.main == "model_training"
    assert topology.main not in arguments(topology)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_no_queue_asks_for_a_consumer_timeout(queue_type):
    for queue in arguments(Topology(queue_type=queue_type)).values():
        assert "x-consumer-timeout" not in queue


def test_parked_and_retried_jobs_come_back_ahead_of_the_backlog():
    topology = Topology()
    queues = arguments(topology)
    waiting = [topology.parked, *topology.job_retries.values()]
    assert {queues[name]["x-dead-letter-routing-key"] for name in waiting} == {topology.resume}
    assert queues[topology.parked]["x-message-ttl"] == 60_000
    ttls = [queues[name]["x-message-ttl"] for name in topology.job_retries.values()]
    assert ttls == [30_000, 120_000, 600_000, 3_600_000]


def test_retried_events_come_back_to_the_events():
    topology = Topology()
    queues = arguments(topology)
    for name in topology.events_retries.values():
        assert queues[name]["x-dead-letter-routing-key"] == topology.events


def test_the_dead_are_bounded_and_refuse_rather_than_drop():
    topology = Topology(dead_max_messages=77)
    for name in (topology.dead, topology.events_dead):
        assert arguments(topology)[name]["x-max-length"] == 77
        assert arguments(topology)[name]["x-overflow"] == "reject-publish"


def test_quorum_queues_hand_over_their_expired_messages_without_a_gap():
    queues = arguments(Topology(queue_type="quorum"))
    assert {queue["x-queue-type"] for queue in queues.values()} == {"quorum"}
    for queue in queues.values():
        if "x-dead-letter-routing-key" in queue:
            assert queue["x-dead-letter-strategy"] == "at-least-once"
            assert queue["x-overflow"] == "reject-publish"


def test_a_quorum_queue_buries_what_it_has_given_out_too_often_instead_of_dropping_it():
    topology = Topology(queue_type="quorum")
    queues = arguments(topology)
    assert queues[topology.resume]["x-dead-letter-routing-key"] == topology.dead
    assert queues[topology.events]["x-dead-letter-routing-key"] == topology.events_dead


@pytest.mark.parametrize(
    ("attempt", "rung"), [(0, "30s"), (1, "30s"), (2, "2m"), (3, "10m"), (4, "1h"), (9, "1h")]
)
def test_each_attempt_waits_on_the_next_rung_and_the_last_repeats(attempt: int, rung: str):
    assert Topology().retry_for_attempt(attempt) == f"model_training.retry.{rung}"


@pytest.mark.parametrize(
    ("seconds", "rung"), [(0, "30s"), (30, "30s"), (31, "2m"), (3601, "6h"), (10**6, "6h")]
)
def test_an_event_waits_no_shorter_than_asked_unless_longer_than_the_ladder(
    seconds: float, rung: str
):
    assert Topology().events_retry_for(seconds) == f"model_training.events.retry.{rung}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30s"), (120, "2m"), (5400, "90m"), (3600, "1h"), (0.2, "200ms")]
)
def test_a_delay_is_spelled_in_its_largest_whole_unit(seconds: float, text: str):
    assert spell(seconds) == text
