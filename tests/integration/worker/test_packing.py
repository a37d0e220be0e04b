"""Several jobs at one trainer (`PACK_SLOTS`): each is its own job, whatever becomes of the others.

The stand-in trainer ends at once if it is given a job beside one that it may not share with.
"""

import json

import pytest

from tests import standin_trainer as standin
from tests.live_worker import eventually
from worker.demo.receiver import Reply
from worker.demo.run import journal_problems

SLOTS = 4

PACKED = {"PACK_SLOTS": str(SLOTS)}

#: A training that ends only when it is told to.
ENDLESS = {"max_train_steps": 50_000, "checkpoint_seconds": 3600}


@pytest.fixture
def jobs(site):
    """Messages of jobs of as many styles."""

    def make(count, parameters=ENDLESS, first_style=10, **changes):
        styles = range(first_style, first_style + count)
        return [site.message(style_id=s, parameters=parameters, **changes) for s in styles]

    return make


@pytest.fixture
def gone(site):
    """Ids of jobs whose receiver does not want them any more."""
    ids = set()
    site.receiver.respond = lambda request: Reply(
        status=410 if request.event == "progress" and request.json["job_id"] in ids else 200
    )
    return ids


def publish(site, messages):
    for message in messages:
        site.publish(message)


def trains(worker, message, count=1):
    return worker.wait_for_log("stage_started", count, stage="training", job_id=message["job_id"])


def all_train(site, worker, messages):
    publish(site, messages)
    for message in messages:
        trains(worker, message)


def orders_of(worker, event, **fields):
    """Job ids of the lines of an event, in order."""
    return [line["job_id"] for line in worker.log(event) if fields.items() <= line.items()]


def test_jobs_share_one_trainer_and_each_ends_as_its_own(site, jobs):
    long, short = jobs(3), jobs(5, {"max_train_steps": 5}, first_style=20)
    with site.worker(**PACKED, PREFETCH_SECONDS="0") as worker:
        all_train(site, worker, long)
        publish(site, short)
        for message in short:
            assert site.wait_for_end(message["job_id"]).event == "complete"
        assert not worker.log("job_waits_for_trainer")
    assert len(worker.log("trainer_started")) == 1
    assert worker.process.returncode == 0
    for message in short:
        adapter = site.objects(f"models/style_{message['style_id']}/lora_weights.safetensors")
        assert [json.loads(body)["job_id"] for body in adapter.values()] == [message["job_id"]]
        assert journal_problems(site.journal(message["job_id"])) == []


def test_no_more_are_taken_than_the_trainer_has_slots_and_one_ahead(site, jobs):
    with site.worker(**PACKED, PREFETCH_SECONDS="100000") as worker:
        all_train(site, worker, jobs(SLOTS))
        publish(site, jobs(3, first_style=20))
        worker.wait_for_log("job_waits_for_trainer")
        assert site.queue_sizes("model_training") == [2]


def test_a_trainer_that_ends_costs_each_of_its_jobs_one_attempt_and_the_next_is_made_alone(
    site, jobs
):
    neighbours = jobs(2, {"max_train_steps": 400, "checkpoint_seconds": 3600})
    poison = site.message(style_id=standin.CRASHES_ONCE)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, neighbours)
        site.publish(poison)
        for message in (*neighbours, poison):
            assert site.wait_for_end(message["job_id"]).event == "complete"
    assert worker.process.returncode == 0
    everybody = {message["job_id"] for message in (*neighbours, poison)}
    failed = worker.log("job_failed")
    assert {line["job_id"] for line in failed} == everybody
    assert [line["code"] for line in failed] == ["WORKER_CRASHED"] * 3
    again = [line for line in worker.log("job_taken_up") if line["epoch"] == 2]
    assert {line["job_id"] for line in again} == everybody
    assert {line["attempt"] for line in again} == {2}
    began = orders_of(worker, "stage_started", stage="training")[3:]
    ended = orders_of(worker, "stage_ended", stage="training")
    assert began == ended, "one after another"
    assert len(worker.log("trainer_started")) == 2


def test_a_job_that_ends_trainers_does_so_to_its_neighbours_once(site, jobs):
    neighbours = jobs(2, {"max_train_steps": 200, "checkpoint_seconds": 3600})
    poison = site.message(style_id=standin.CRASHES)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, neighbours)
        site.publish(poison)
        end = site.wait_for_end(poison["job_id"])
        assert end.json["error_code"] == "WORKER_CRASHED"
        for message in neighbours:
            assert site.wait_for_end(message["job_id"]).event == "complete"
    attempts = [line["job_id"] for line in worker.log("job_taken_up")]
    assert [attempts.count(m["job_id"]) for m in (*neighbours, poison)] == [2, 2, 5]


def test_a_job_that_diverges_does_not_disturb_its_neighbours(site, jobs, gone):
    neighbours = jobs(2)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, neighbours)
        bad = site.message(style_id=standin.DIVERGES)
        site.publish(bad)
        assert site.wait_for_end(bad["job_id"]).json["error_code"] == "NON_FINITE_LOSS"
        other = site.message(style_id=11)
        site.publish(other)
        assert site.wait_for_end(other["job_id"]).event == "complete"
        assert len(worker.log("trainer_started")) == 1
        assert not worker.log("job_interrupted")


def test_one_of_several_is_canceled_and_makes_room_for_another(site, jobs, gone):
    running = jobs(SLOTS)
    other = site.message(style_id=20)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, running)
        site.publish(other)
        gone.add(running[1]["job_id"])
        assert site.wait_for_end(running[1]["job_id"]).json["error_code"] == "CANCELED"
        assert site.wait_for_end(other["job_id"]).event == "complete"
        kept = {message["job_id"] for message in running} - gone
        assert not kept & {line["job_id"] for line in worker.log("job_committed")}
        assert len(worker.log("trainer_started")) == 1


def test_one_of_several_is_canceled_by_the_operator(site, jobs):
    running = jobs(3)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, running)
        with site.worker("-m", "worker.cli", "cancel", running[0]["job_id"], name="cancel") as told:
            assert told.wait() == 0
        assert site.wait_for_end(running[0]["job_id"]).json["error_code"] == "CANCELED"
        assert len(worker.log("job_committed")) == 1


def test_a_drain_leaves_a_checkpoint_of_each_and_another_worker_goes_on_with_all(site, jobs):
    running = jobs(SLOTS, {"max_train_steps": 1500, "checkpoint_seconds": 3600})
    with site.worker(**PACKED, name="first") as first:
        all_train(site, first, running)
        site.receiver.wait_for(
            lambda journal: (
                len({e.json["job_id"] for e in journal if e.json["progress"]["current_step"] > 0})
                == SLOTS
            ),
            30,
        )
        first.signal()
        assert first.wait(30) == 0
    stopped = {line["job_id"]: line["step"] for line in first.log("job_interrupted")}
    assert len(stopped) == SLOTS
    assert all(step > 0 for step in stopped.values())
    with site.worker(**PACKED, name="second") as second:
        for message in running:
            assert site.wait_for_end(message["job_id"]).event == "complete"
    found = {line["job_id"]: line["step"] for line in second.log("checkpoint_found")}
    assert found == stopped
    assert {line["attempt"] for line in second.log("job_taken_up")} == {1}


def test_a_job_that_cannot_share_waits_for_the_trainer_and_is_not_overtaken(site, jobs, gone):
    first = jobs(2)
    other = site.message(style_id=20, parameters={"max_train_steps": 5, "resolution": 256})
    later = jobs(2, {"max_train_steps": 5}, first_style=30)
    with site.worker(**PACKED) as worker:
        all_train(site, worker, first)
        site.publish(other)
        worker.wait_for_log("job_waits_for_trainer", job_id=other["job_id"])
        publish(site, later)
        gone.update(message["job_id"] for message in first)
        for message in (other, *later):
            assert site.wait_for_end(message["job_id"]).event == "complete"
    assert orders_of(worker, "stage_started", stage="training")[2] == other["job_id"]
    assert worker.process.returncode == 0


def test_a_job_that_cannot_share_goes_to_a_worker_that_is_free(site, jobs):
    other = site.message(style_id=20, parameters={"max_train_steps": 5, "resolution": 256})
    with site.worker(**PACKED, name="busy") as busy:
        all_train(site, busy, jobs(2))
        with site.worker(**PACKED, name="idle") as idle:
            eventually(lambda: site.listeners("model_training") == 2, "both listen")
            site.publish(other)
            assert site.wait_for_end(other["job_id"]).event == "complete"
            assert idle.log("job_taken_up")
    assert not busy.log("job_waits_for_trainer")


def test_jobs_are_spread_over_workers_before_they_share_a_trainer(site, jobs):
    site.declare_queue()
    with site.worker(**PACKED, name="one") as one, site.worker(**PACKED, name="two") as two:
        eventually(lambda: site.listeners("model_training") == 2, "both listen")
        for message in jobs(4):
            site.publish(message)
            eventually(
                lambda message=message: any(
                    message["job_id"] in orders_of(worker, "job_taken_up") for worker in (one, two)
                )
            )
            eventually(lambda: site.listeners("model_training") == 2, "both listen again")
        assert [len(worker.log("job_taken_up")) for worker in (one, two)] == [2, 2]


def test_a_long_job_of_several_is_handed_over_before_the_broker_takes_it_back(site, jobs):
    running = jobs(3, {"max_train_steps": 300})
    with site.worker(**PACKED, HANDOVER_AFTER_SECONDS="0.5") as worker:
        publish(site, running)
        for message in running:
            assert site.wait_for_end(message["job_id"]).event == "complete"
        queues = [f"model_training{s}" for s in ("", ".parked", ".resume")]
        eventually(lambda: not any(site.queue_sizes(*queues)), "all queues empty", 20)
    everybody = {message["job_id"] for message in running}
    assert set(orders_of(worker, "delivery_handed_over")) == everybody
    assert sorted(orders_of(worker, "job_taken_up")) == sorted(everybody)


def test_a_job_that_cannot_join_in_time_is_given_back_as_a_copy_which_no_delivery_limit_counts(
    site, jobs, gone
):
    first = jobs(2)
    other = site.message(style_id=20, parameters={"max_train_steps": 5, "resolution": 256})
    with site.worker(**PACKED, PREFETCH_SECONDS="1") as worker:
        all_train(site, worker, first)
        site.publish(other)
        worker.wait_for_log("job_given_back", job_id=other["job_id"])
        queues = ("model_training.resume", "model_training")
        eventually(lambda: site.queue_sizes(*queues) == [1, 0], "the copy lies in `resume`")
        gone.update(message["job_id"] for message in first)
        assert site.wait_for_end(other["job_id"]).event == "complete"
    taken_up = [line for line in worker.log("job_taken_up") if line["job_id"] == other["job_id"]]
    assert [line["attempt"] for line in taken_up] == [1]
