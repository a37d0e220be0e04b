"""Workers that end by themselves: after so many jobs, or when there is nothing to do."""

import pytest

from tests.live_worker import eventually
from worker.demo.receiver import Reply

#: Five steps of this length leave time to look at a running job, seconds.
SLOW = ("-m", "tests.standin_worker", "0.2")


@pytest.fixture
def messages(site):
    return [site.message(style_id=10 + number) for number in range(3)]


def publish(site, messages):
    for message in messages:
        site.publish(message)


def test_a_worker_for_one_job_does_it_tells_its_end_and_leaves_the_others(site, messages):
    publish(site, messages)
    with site.worker(*SLOW, MAX_JOBS="1", PREFETCH_SECONDS="600") as worker:
        assert worker.wait() == 0
    assert [line["reason"] for line in worker.log("worker_done")] == ["max_jobs"]
    assert len(worker.log("job_taken_up")) == 1
    assert not worker.log("job_waits_for_trainer")
    assert [e.json["job_id"] for e in site.receiver.journal if e.event == "complete"] == [
        messages[0]["job_id"]
    ]
    assert site.queue_sizes("model_training", "model_training.events") == [2, 0]


def test_what_is_no_job_does_not_count(site, messages):
    ended, refused, job = messages
    with site.worker(MAX_JOBS="1", name="first") as first:
        site.publish(ended)
        assert first.wait() == 0
    refused["image_urls"] = []
    publish(site, [ended, refused, job])
    with site.worker(MAX_JOBS="1", name="second") as second:
        assert second.wait() == 0
    assert [line["job_id"] for line in second.log("job_taken_up")] == [job["job_id"]]
    ends = {e.json["job_id"]: e.event for e in site.receiver.journal if e.event != "progress"}
    assert ends == {
        ended["job_id"]: "complete",
        refused["job_id"]: "failed",
        job["job_id"]: "complete",
    }


def test_two_jobs_of_three_with_two_trainers(site, messages):
    publish(site, messages)
    with site.worker(MAX_JOBS="2", TRAINERS_PER_GPU="2") as worker:
        assert worker.wait() == 0
    assert len(worker.log("job_committed")) == 2
    assert site.queue_sizes("model_training") == [1]


def test_an_idle_worker_ends_and_a_job_lets_it_wait_anew(site, messages):
    with site.worker(*SLOW, EXIT_WHEN_IDLE="3") as worker:
        worker.wait_for_log("trainer_started")
        site.publish(messages[0])
        assert worker.wait() == 0
    assert [line["reason"] for line in worker.log("worker_done")] == ["idle"]
    assert [line["clean"] for line in worker.log("worker_stopped")] == [True]
    assert site.wait_for_end(messages[0]["job_id"]).event == "complete"
    done_at = max(e.monotonic_seconds for e in site.receiver.journal)
    first_at = min(e.monotonic_seconds for e in site.receiver.journal)
    assert done_at - first_at > 0.8  # the five slow steps


def test_the_verb_takes_both_limits_and_sweeps_what_a_killed_worker_left(site):
    left = site.folder / "work" / "job-of-the-dead"
    left.mkdir(parents=True)
    arguments = ("-m", "worker.cli", "run", "--max-jobs", "1", "--exit-when-idle", "2")
    with site.worker(*arguments) as worker:
        assert worker.wait() == 0
    assert [line["reason"] for line in worker.log("worker_done")] == ["idle"]
    assert [line["folders"] for line in worker.log("job_folders_swept")] == [1]
    assert not left.exists()


def test_events_that_others_left_are_sent_by_a_worker_that_finds_no_job(site, messages):
    answers = [500]
    site.receiver.respond = lambda request: Reply(
        status=answers[0] if request.event == "complete" else 200
    )
    with site.worker(MAX_JOBS="1", WEBHOOK_RETRY_SECONDS="5", name="first") as first:
        site.publish(messages[0])
        assert first.wait() == 0
    answers[0] = 200
    eventually(lambda: site.queue_sizes("model_training.events") == [1], "the event is back")
    with site.worker(EXIT_WHEN_IDLE="2", WEBHOOK_RETRY_SECONDS="5", name="second") as second:
        assert second.wait() == 0
    assert not second.log("job_taken_up")
    assert site.queue_sizes("model_training.events") == [0]
    assert [e.event for e in site.receiver.journal][-1] == "complete"
