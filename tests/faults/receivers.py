"""Kind 6: receivers that fail in every way, and what the GPU does meanwhile."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.scene import PATIENCE_SECONDS, Lab, Scene, scene, wait
from tests.fixtures.servers import drip, raw_server
from tests.live_worker import eventually
from worker.demo.receiver import Received, Receiver, Reply

_KIND = "receiver"

#: How long a receiver is away, seconds. The next job must have ended long before.
AWAY_SECONDS = 12.0

#: How long a receiver hangs, seconds: longer than the workers wait.
_HANGS_SECONDS = 20.0

Respond = Callable[[Received], Reply]


def cases() -> Iterator[Case]:
    for name, respond in _PASSING.items():
        yield Case(_KIND, name, partial(_passing, respond=respond))
    yield Case(_KIND, "it drips its answers slowly", _drips)
    yield Case(_KIND, "302 to another host", _redirects)
    yield Case(_KIND, "200, but the connection broke first", _answer_lost)
    yield Case(_KIND, "down, and up again later", _down)
    yield Case(_KIND, "410 on a progress report", _gone)


def _first(count: int, reply: Reply) -> Callable[[], Respond]:
    """A receiver whose first answers to terminal events are `reply`."""

    def fresh() -> Respond:
        seen = itertools.count()
        return lambda request: (
            reply if request.event != "progress" and next(seen) < count else Reply()
        )

    return fresh


def _hanging() -> Respond:
    hung = threading.Event()

    def respond(request: Received) -> Reply:
        if request.event != "progress" and not hung.is_set():
            hung.set()
            time.sleep(_HANGS_SECONDS)
            return Reply(500)
        return Reply()

    return respond


_PASSING: dict[str, Callable[[], Respond]] = {
    "500 three times": _first(3, Reply(500)),
    "503 to everything but the end": lambda: (
        lambda request: Reply(503) if request.event == "progress" else Reply()
    ),
    "429 with Retry-After": _first(2, Reply(429, {"Retry-After": "1"})),
    "408, 425": _first(2, Reply(425)),
    "it hangs": _hanging,
}


def _passing(lab: Lab, respond: Callable[[], Respond]) -> Counts:
    with scene(lab, respond=respond()) as played:
        played.start()
        played.publish()
        played.publish()
        played.wait_for_ends()
        counts = played.finish()
        expect(counts, counts.committed == 2, f"{counts.committed} of 2 jobs are completed")
        return counts


def _drips(lab: Lab) -> Counts:
    """Progress goes to a receiver that never finishes an answer; the next job has another."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"
    with raw_server(drip(head, b"X-Y: z\r\n")) as slow, scene(lab) as played:
        hosts = f"{played.receiver.host},{slow.removeprefix('http://')}"
        played.start(WEBHOOK_ALLOWED_HOSTS=hosts, WEBHOOK_RETRY_TOTAL_SECONDS="3")
        played.publish(webhook_url=slow)
        second = played.publish()
        _ends_before_the_other(played, second)
        played.wait_for_ends()
        return played.finish()


def _redirects(lab: Lab) -> Counts:
    with Receiver() as elsewhere:
        moved = Reply(302, {"Location": f"{elsewhere.url}/api/webhooks/training/complete"})
        with scene(lab, respond=lambda request: moved) as played:
            played.start()
            played.publish()
            played.wait_for_ends()
            counts = played.finish()
            expect(counts, not elsewhere.journal, "the redirect was followed")
            return counts


def _answer_lost(lab: Lab) -> Counts:
    """The receiver has taken the event, and its answer never arrives: the one window in which an
    end is seen twice, with the same key and the same bytes.
    """
    lost = _first(1, Reply(200, lost=True))
    with scene(lab, respond=lost()) as played:
        played.start()
        played.publish()
        eventually(lambda: len([a for a in played.arrivals if a.terminal]) == 2, "a second try")
        counts = played.finish()
        expect(counts, counts.terminal_seen_twice == 1, "the end was not repeated")
        return counts


def _down(lab: Lab) -> Counts:
    """Nobody listens; the second job, for a receiver that does, is not held up."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with scene(lab) as played:
        played.start(WEBHOOK_ALLOWED_HOSTS=f"{played.receiver.host},127.0.0.1:{port}")
        played.publish(webhook_url=f"http://127.0.0.1:{port}")
        _ends_before_the_other(played, played.publish())
        wait(AWAY_SECONDS)
        with Receiver(port=port, on_request=played.note):
            played.wait_for_ends()
            return played.finish()


def _gone(lab: Lab) -> Counts:
    def respond(request: Received) -> Reply:
        if request.event != "progress":
            return Reply()
        return Reply(410 if request.json["progress"]["stage"] == "training" else 200)

    with scene(lab, respond=respond) as played:
        played.start()
        job_id = played.publish(parameters={"max_train_steps": 2000})
        played.wait_for_ends()
        counts = played.finish()
        end = next(one for one in played.arrivals if one.terminal)
        expect(counts, b"CANCELED" in end.body, f"it ended with {end.body!r}")
        expect(counts, not played.site.objects("models/"), "a canceled job left an adapter")
        expect(counts, len(played.trained_steps()) < 2000, f"{job_id} was trained to its end")
        return counts


def _ends_before_the_other(played: Scene, job_id: str) -> None:
    """A broken receiver does not idle the GPU."""
    played.receiver.wait_for(
        lambda got: any(one.event == "complete" and one.json["job_id"] == job_id for one in got),
        PATIENCE_SECONDS,
    )
