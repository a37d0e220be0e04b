"""While one job trains, the next one's pictures come and the last one's files go, safely."""

import os
import signal
import threading

import pytest

from tests import standin_trainer as standin
from tests.fixtures.servers import proxy_to
from tests.live_worker import eventually
from worker.demo.receiver import Reply

#: A training that ends only when it is told to.
ENDLESS = {"max_train_steps": 50_000, "checkpoint_seconds": 3600}

#: Its estimate, too, is below this: another job is taken while it runs.
AHEAD = {"PREFETCH_SECONDS": "100000"}


def trains(worker, message, count=1):
    return worker.wait_for_log("stage_started", count, stage="training", job_id=message["job_id"])


@pytest.fixture
def endless(site):
    return site.message(parameters=ENDLESS)


@pytest.fixture
def following(site):
    picture = site.put_picture("training/11/b.jpg")
    return site.message(style_id=11, image_urls=[picture])


def waits(site, worker, endless, following):
    """Have one job train and the other wait for its turn, with its pictures there."""
    site.publish(endless)
    trains(worker, endless)
    site.publish(following)
    return worker.wait_for_log("job_waits_for_trainer", job_id=following["job_id"])


def test_a_job_trains_while_the_files_of_the_one_before_are_being_stored(site):
    first, second = site.message(), site.message(style_id=11)
    second_trains = threading.Event()

    def meet(method, path, headers, body):
        if method == "PUT" and f"jobs/{first['job_id']}/output/" in path:
            assert second_trains.wait(60), "the second job waits for the first one's upload"

    with (
        proxy_to(site.s3.endpoint_url, meet=meet) as url,
        site.worker(S3_ENDPOINT_URL=url, S3_TIMEOUT_SECONDS="70") as worker,
    ):
        site.publish(first)
        site.publish(second)
        trains(worker, second)
        second_trains.set()
        ends = [site.wait_for_end(message["job_id"]) for message in (first, second)]
    assert [end.event for end in ends] == ["complete", "complete"]
    assert len(worker.log("trainer_started")) == 1


def test_the_next_jobs_pictures_come_while_this_one_trains_and_nothing_of_it_is_claimed(
    site, endless, following
):
    gone = []
    site.receiver.respond = lambda request: Reply(
        status=410 if gone and request.json["job_id"] == endless["job_id"] else 200
    )
    with site.worker(**AHEAD) as worker:
        waited = waits(site, worker, endless, following)
        assert waited["pictures_fetched"] is True
        assert site.objects(f"jobs/{following['job_id']}/") == {}
        assert site.journal(following["job_id"]) == []
        gone.append(True)
        assert site.wait_for_end(following["job_id"]).event == "complete"
        assert site.wait_for_end(endless["job_id"]).json["error_code"] == "CANCELED"
    assert len(worker.log("job_taken_up")) == 2


def test_no_other_job_is_taken_before_the_running_one_is_nearly_done(site, endless, following):
    with site.worker(PREFETCH_SECONDS="0") as worker:
        site.publish(endless)
        trains(worker, endless)
        site.publish(following)
        site.receiver.wait_for(
            lambda journal: any(e.json["progress"]["current_step"] > 20 for e in journal), 30
        )
        assert site.queue_sizes("model_training") == [1]
        assert not worker.log("job_waits_for_trainer")


def test_an_idle_worker_gets_a_job_before_a_busy_one_that_looks_ahead(site, endless, following):
    with site.worker(**AHEAD, name="busy") as busy:
        site.publish(endless)
        trains(busy, endless)
        site.receiver.wait_for(
            lambda journal: any(e.json["progress"]["current_step"] > 0 for e in journal), 30
        )
        with site.worker(name="idle") as idle:
            eventually(lambda: site.listeners("model_training") == 2, "both listen")
            site.publish(following)
            assert site.wait_for_end(following["job_id"]).event == "complete"
            assert idle.log("job_taken_up")
    assert not busy.log("job_waits_for_trainer")


def test_a_drain_gives_the_waiting_job_back_and_another_worker_does_both(site, endless, following):
    with site.worker(**AHEAD, name="first") as first:
        waits(site, first, endless, following)
        first.signal()
        assert first.wait(30) == 0
    assert first.log("job_given_back")
    assert len(first.log("job_taken_up")) == 1
    stopped_at = first.log("job_interrupted")[0]["step"]
    assert stopped_at > 0
    assert site.queue_sizes("model_training") == [2]
    with site.worker(**AHEAD, name="second", TRAINERS_PER_GPU="2") as second:
        resumed = second.wait_for_log("checkpoint_found")
        assert (resumed["job_id"], resumed["step"]) == (endless["job_id"], stopped_at)
        assert site.wait_for_end(following["job_id"]).event == "complete"


def test_a_kill_while_a_job_waits_costs_it_no_attempt(site, following):
    training = site.message(style_id=standin.CRASHES_ONCE, parameters=ENDLESS)
    with site.worker(**AHEAD, name="first") as first:
        site.publish(training)
        eventually(lambda: first.log("job_failed"), "it has crashed once")
        trains(first, training, 2)
        site.publish(following)
        first.wait_for_log("job_waits_for_trainer")
        first.signal(signal.SIGKILL)
        first.wait()
    with site.worker(name="second") as second:
        assert site.wait_for_end(following["job_id"]).event == "complete"
        taken = second.wait_for_log("job_taken_up", job_id=following["job_id"])
        assert (taken["epoch"], taken["attempt"]) == (1, 1)


def test_a_waiting_job_moves_on_when_the_running_one_crashes(site, following):
    crashing = site.message(style_id=standin.HANGS_LATER, parameters={"max_train_steps": 10})
    with site.worker(**AHEAD, MAX_ATTEMPTS="1") as worker:
        site.publish(crashing)
        trains(worker, crashing)
        site.publish(following)
        worker.wait_for_log("job_waits_for_trainer")
        os.kill(worker.log("trainer_started")[0]["pid"], signal.SIGKILL)
        assert site.wait_for_end(crashing["job_id"]).event == "failed"
        assert site.wait_for_end(following["job_id"]).event == "complete"


def test_a_body_without_an_id_gets_one_before_it_waits(site, endless):
    """It ended once; given back without an id it would be taken for that run."""
    body = site.message(style_id=11)
    del body["job_id"]
    with site.worker(**AHEAD, name="first") as first:
        site.publish(body)
        ended = first.wait_for_log("job_committed")["job_id"]
        site.publish(endless)
        trains(first, endless)
        site.publish(body)
        waited = first.wait_for_log("job_waits_for_trainer")
        assert waited["job_id"] == f"{ended}-2"
        first.signal(signal.SIGKILL)
        first.wait()
    with site.worker(name="second"):
        assert site.wait_for_end(f"{ended}-2").event == "complete"
