"""Kind 12: whatever is refused, quoted or shown, no secret is in it.

Each setting that holds a secret has a canary, in this kind and in all others; after each case they
are searched for wherever somebody may look (`Scene.finish`). Here is what brings them to the
surface: libraries at their loudest, pages, refusals, receivers that quote what they were sent.
"""

import urllib.request
from collections.abc import Iterator
from functools import partial
from urllib.parse import quote, urlsplit

from tests import standin_trainer as standin
from tests.canaries import CANARIES
from tests.faults.case import Case, expect
from tests.faults.checker import Counts
from tests.faults.scene import PATIENCE_SECONDS, Lab, Scene, scene
from tests.fixtures.servers import free_port
from tests.live_worker import TOKEN, eventually
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.receiver import Received, Reply

_KIND = "secret"

_USER = "canary"

#: What a browser, a probe and Prometheus ask for.
_PAGES = (("/", "text/html"), ("/status", ""), ("/livez", ""), ("/readyz", ""), ("/metrics", ""))


def login(node: RabbitMQNode) -> str:
    """Have a user on the broker whose password is a canary; the address that it logs in with."""
    password = CANARIES["RABBITMQ_PASSWORD"]
    node.ctl("add_user", _USER, password)
    node.ctl("set_permissions", "-p", "/", _USER, ".*", ".*", ".*")
    return _address(node.url, password)


def _address(url: str, password: str) -> str:
    parts = urlsplit(url)
    user = f"{_USER}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()


def cases() -> Iterator[Case]:
    yield Case(_KIND, "libraries log all that they do, and every page is looked at", _loud)
    yield Case(_KIND, "the broker refuses the login", _login_refused)
    for status in (200, 400, 401, 500):
        name = f"a receiver answers {status} and quotes the request"
        yield Case(_KIND, name, partial(_quoted, status=status))
    yield Case(_KIND, "the trainer crashes, is out of memory, and prints", _failing_trainers)


def _loud(lab: Lab) -> Counts:
    port = free_port()
    loud = "pika,botocore,boto3,s3transfer,urllib3,requests,opentelemetry"
    settings = {"LOG_LEVEL": "DEBUG", "LOUD_LIBRARIES": loud, "HTTP_PORT": str(port)}
    # Each request is a hundred lines now: all that is quick elsewhere takes longer here.
    patient = {"LEASE_TERM_SECONDS": "60", "LEASE_RENEW_SECONDS": "5", "CHECKPOINT_STEPS": "0"}
    with scene(lab, STEP_SECONDS="0.5", **settings, **patient) as played:
        worker = played.start()
        job_id = played.publish(parameters={"max_train_steps": 6})
        worker.wait_for_log("stage_started", stage="training")
        _look(played, port, "at work")
        eventually(lambda: _ended(played, job_id), "the job's end", PATIENCE_SECONDS)
        _look(played, port, "afterwards")
        counts = played.finish()
        text = worker.log_file.read_text()
    # A library that says nothing cannot leak anything.
    for name in ("pika", "botocore", "urllib3"):
        expect(counts, f'"logger": "{name}' in text, f"{name} is as loud as it can be")
    expect(counts, "AWS4-HMAC-SHA256" in text, "what is signed for the store is in the log")
    expect(counts, "[redacted]" in text, "something had to be kept out of the log")
    return counts


def _look(played: Scene, port: int, when: str) -> None:
    for path, accept in _PAGES:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            played.shown[f"page {path} {when}"] = str(answer.headers).encode() + answer.read()


def _ended(played: Scene, job_id: str) -> bool:
    return any(one.terminal and one.job_id == job_id for one in list(played.arrivals))


def _login_refused(lab: Lab) -> Counts:
    """The wrong password is a secret too: usually it is the right one of something else."""
    wrong = _address(lab.login or lab.broker_url, CANARIES["RABBITMQ_PASSWORD"] + "-wrong")
    with scene(lab) as played:
        refused = played.start(
            RABBITMQ_URL=wrong, RABBITMQ_GIVE_UP_SECONDS="2", LOUD_LIBRARIES="pika"
        )
        status = refused.wait(PATIENCE_SECONDS)
        played.start()
        played.publish()
        played.wait_for_ends()
        counts = played.finish()
        text = refused.log_file.read_text()
    expect(counts, status != 0, "without a login it does not go on")
    expect(counts, "ACCESS_REFUSED" in text, "the log says why")
    return counts


def _quoted(lab: Lab, status: int) -> Counts:
    """Many a receiver's error page shows the request that it was sent, headers and all."""

    def respond(request: Received) -> Reply:
        quoted = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        known = {"X-Debug": request.headers["authorization"], "Location": f"/?token={TOKEN}"}
        first = request.event == "progress" or not told
        told.append(request.event)
        return Reply(status if first else 200, known, quoted.encode())

    told: list[str] = []
    with scene(lab, respond=respond, LOG_LEVEL="DEBUG") as played:
        played.start()
        played.publish()
        played.wait_for_ends()
        return played.finish()


def _failing_trainers(lab: Lab) -> Counts:
    with scene(lab, LOG_LEVEL="DEBUG") as played:
        played.start()
        for style_id in (standin.CRASHES_ONCE, standin.OUT_OF_MEMORY, standin.NOISY):
            played.publish(style_id=style_id)
        played.wait_for_ends()
        return played.finish()
