"""What the worker promises, each promise once, on a real broker, store and receiver.

The campaign (`make faults`) tries them at every point of a job; here each can be read.
"""

import signal

import pytest

from tests import standin_trainer as standin
from tests.faults.checker import Published
from tests.faults.failpoints import Fault
from tests.faults.scene import Lab, scene
from tests.live_worker import TOKEN, eventually
from worker.demo.receiver import Receiver, Reply


@pytest.fixture
def lab(rabbitmq_url, s3_server, tmp_path) -> Lab:
    return Lab(rabbitmq_url, s3_server, tmp_path)


def test_p1_no_job_is_lost(lab):
    """Every confirmed message ends committed, or failed with a copy in the dead-letter queue."""
    with scene(lab) as played:
        for style_id in (10, standin.CRASHES, 11, standin.OUT_OF_MEMORY, 12):
            played.publish(style_id=style_id)
        played.publish(parameters={"rank": 0})
        for point in ("step 5", "store.write result", "publish events"):
            process = "trainer" if point.startswith("step") else "supervisor"
            played.site.folder.joinpath("fault-fired").unlink(missing_ok=True)
            worker = played.strike(Fault(process, "kill", "after", point))
            worker.signal(signal.SIGKILL)
            worker.wait()
        played.start()
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    assert (counts.committed, counts.failed) == (3, 3)


def test_p2_one_adapter_a_job_whatever_is_redelivered_and_a_zombie_cannot_overwrite_it(lab):
    with scene(lab) as played:
        job_id = played.publish(times=3)
        zombie = played.strike(Fault("supervisor", "stop", "before", "store.write result"))
        played.start()
        played.wait_for_ends()
        before = played.site.objects(f"jobs/{job_id}/result.json")
        zombie.signal(signal.SIGCONT)
        zombie.wait_for_log("job_committed", ours=False)
        assert played.site.objects(f"jobs/{job_id}/result.json") == before
        counts = played.finish()
    assert counts.findings == []
    assert counts.committed == 1


def test_p3_one_effective_end_with_one_key_and_the_same_bytes_on_every_try(lab):
    replies = [Reply(503), Reply(429, {"Retry-After": "1"}), Reply(200, lost=True)]

    def respond(request):
        terminal = request.event != "progress"
        return replies.pop(0) if terminal and replies else Reply()

    with scene(lab, respond=respond) as played:
        played.start()
        job_id = played.publish()
        eventually(lambda: len([one for one in played.arrivals if one.terminal]) == 4)
        counts = played.finish()
        ends = [one for one in played.arrivals if one.terminal]
    assert {(one.key, one.body) for one in ends} == {(f"{job_id}:complete", ends[0].body)}
    assert counts.findings == []


def test_p4_a_kill_costs_at_most_the_time_between_two_checkpoints(lab):
    """Killed at the worst moment: the third checkpoint is uploaded, and nobody knows of it."""
    settings = {"STEP_SECONDS": "0.05", "CHECKPOINT_STEPS": "0"}
    steps_between_checkpoints = 1 / 0.05
    with scene(lab, **settings) as played:
        played.publish(parameters={"max_train_steps": 90, "checkpoint_seconds": 1})
        played.strike(Fault("supervisor", "kill", "before", "store.write checkpoint", 3)).wait()
        played.start()
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    # The trainer goes on while a checkpoint is uploaded.
    assert 0 < counts.steps_redone < 2 * steps_between_checkpoints


def test_p4_a_sigterm_with_enough_grace_costs_no_step(lab):
    with scene(lab) as played:
        played.publish(parameters={"max_train_steps": 100})
        first = played.start()
        eventually(lambda: len(played.trained_steps()) > 20)
        first.signal()
        assert first.wait() == 0
        played.start()
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    assert counts.steps_redone == 0


def test_p6_a_broken_receiver_never_idles_the_gpu(lab):
    """The next job ends before the first one's receiver is back, and that one is told then."""
    back = []

    def respond(request):
        return Reply() if back or request.json["job_id"] != first else Reply(503)

    with scene(lab, respond=respond) as played:
        first = played.publish()
        second = played.publish()
        played.start()
        eventually(
            lambda: any(
                one.terminal and one.accepted and one.job_id == second for one in played.arrivals
            )
        )
        assert not any(one.accepted for one in played.arrivals if one.job_id == first)
        back.append(True)
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    assert counts.committed == 2


@pytest.mark.parametrize(
    "style_id", [standin.CRASHES, standin.SEGFAULTS, standin.OUT_OF_MEMORY, standin.HANGS_LATER]
)
def test_p7_no_job_stops_the_worker(lab, style_id):
    with scene(lab) as played:
        worker = played.start()
        played.publish(style_id=style_id)
        played.publish()
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    assert (counts.committed, counts.failed) == (1, 1)
    assert worker.process.returncode == 0


def test_p8_no_secret_leaves(lab):
    """Not to a host that is not allowed, nor into any log at its loudest, object or dead letter."""
    with Receiver() as stranger, scene(lab, LOG_LEVEL="DEBUG") as played:
        played.start()
        played.publish()
        played.publish(style_id=standin.CRASHES)
        played.publish(webhook_url=stranger.url, refused=True)
        played.publish(image_urls=[f"s3://{played.site.media}/missing.jpg"])
        played.wait_for_ends()
        counts = played.finish()
        assert stranger.journal == []
        sent = [one.headers.get("authorization") for one in played.receiver.journal]
    assert set(sent) == {f"Bearer {TOKEN}"}
    assert counts.leaked == 0
    assert counts.findings == []


def test_one_id_belongs_to_one_content(lab):
    with scene(lab) as played:
        played.start()
        job_id = played.publish()
        played.wait_for_ends()
        played.site.publish(played.site.message(job_id, parameters={"max_train_steps": 3}))
        played.published.append(Published(job_id, refused=True))
        played.wait_for_ends()
        counts = played.finish()
    assert counts.findings == []
    assert (counts.committed, counts.failed) == (1, 1)
