"""One webhook, sent once to a real receiver: what arrives, and what is made of the answer."""

import base64
import hashlib
import hmac
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.servers import drip, free_port, raw_answer, raw_server
from tests.fixtures.tls import server_context
from worker import __version__
from worker.demo.receiver import Received, Receiver, Reply
from worker.webhooks.allow_list import WebhookAllowList
from worker.webhooks.client import Answer, WebhookClient

TOKEN = "token-that-nobody-else-may-see"
BODY = b'{"style_id": 10, "note": "\xc3\xb6"}'
PATH = "/api/webhooks/training/complete"


def client(*hosts: str, **changes: Any) -> WebhookClient:
    allow_list = WebhookAllowList(hosts, require_https=False)
    return WebhookClient(TOKEN, allow_list=allow_list, **changes)


def send(client: WebhookClient, base: str, **changes: Any) -> Answer:
    arguments: dict[str, Any] = {
        "method": "POST",
        "base": base,
        "event_path": PATH,
        "body": BODY,
        "idempotency_key": "job-1:complete",
    }
    return client.send(**arguments | changes)


def answering(*replies: Reply) -> Any:
    rest = list(replies)
    return lambda request: rest.pop(0) if len(rest) > 1 else rest[0]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_the_request_is_as_the_contract_has_it(receiver: Receiver, method: str) -> None:
    answer = send(client(receiver.host), receiver.url, method=method)
    assert answer == Answer("delivered", 200, None, "answered 200")
    (request,) = receiver.journal
    assert (request.method, request.path, request.body) == (method, PATH, BODY)
    assert request.headers == {
        "host": receiver.host,
        "authorization": f"Bearer {TOKEN}",
        "x-request-source": "training-server",
        "content-type": "application/json",
        "idempotency-key": "job-1:complete",
        "user-agent": f"lora-worker/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-length": str(len(BODY)),
    }


def test_a_base_with_a_path_keeps_it(receiver: Receiver) -> None:
    send(client(receiver.host), f"{receiver.url}/v1/api/webhooks/training/123/status")
    assert [request.path for request in receiver.journal] == [f"/v1{PATH}"]


def test_a_signature_can_be_verified_by_the_receiver(receiver: Receiver) -> None:
    key = b"0123456789abcdef01234567"
    secret = "whsec_" + base64.b64encode(key).decode()
    send(client(receiver.host, signing_secret=secret), receiver.url, now=1_700_000_000.9)
    (request,) = receiver.journal
    headers = request.headers
    assert headers["webhook-id"] == headers["idempotency-key"]
    assert headers["webhook-timestamp"] == "1700000000"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply(204, body=b""), Answer("delivered", 204, None, "answered 204")),
        (Reply(404), Answer("refused", 404, None, "answered 404")),
        (Reply(401), Answer("refused", 401, None, "answered 401")),
        (Reply(408), Answer("retry", 408, None, "answered 408")),
        (Reply(425), Answer("retry", 425, None, "answered 425")),
        (Reply(429, {"Retry-After": "77"}), Answer("retry", 429, 77.0, "answered 429")),
        (Reply(500), Answer("retry", 500, None, "answered 500")),
        (
            Reply(503, {"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}),
            Answer("retry", 503, 60.0, "answered 503"),
        ),
        (Reply(410), Answer("gone", 410, None, "answered 410 Gone")),
    ],
)
def test_an_answer_is_classed_as_the_contract_has_it(
    receiver: Receiver, reply: Reply, answer: Answer
) -> None:
    receiver.respond = lambda request: reply
    assert send(client(receiver.host), receiver.url, now=1_700_000_000.0) == answer
    assert len(receiver.journal) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_sees_nothing(
    receiver: Receiver, status: int
) -> None:
    with Receiver() as other:
        for target in (other.url, f"{receiver.url}/elsewhere"):
            receiver.respond = answering(Reply(status, {"Location": target}))
            answer = send(client(receiver.host, other.host), receiver.url, method="PATCH")
            assert (answer.kind, answer.status) == ("refused", status)
        assert other.journal == []
    assert {(request.method, request.path) for request in receiver.journal} == {("PATCH", PATH)}


@pytest.mark.parametrize("target", ["http://[", "/m\xfcde", "http://127.0.0.1:abc/", ""])
def test_a_redirect_to_what_is_no_address_is_refused_like_any_other(
    receiver: Receiver, target: str
) -> None:
    receiver.respond = answering(Reply(302, {"Location": target}))
    answer = send(client(receiver.host), receiver.url)
    assert (answer.kind, answer.status) == ("refused", 302)


def test_a_host_that_is_not_allowed_sees_nothing(receiver: Receiver) -> None:
    answer = send(client("api.example.com"), receiver.url)
    assert (answer.kind, answer.status) == ("refused", None)
    assert "WEBHOOK_ALLOWED_HOSTS" in answer.reason
    assert receiver.journal == []


def test_a_netrc_never_replaces_the_token(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    send(client(receiver.host), receiver.url)
    assert receiver.journal[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_proxy_of_the_environment_never_sees_the_token(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        assert send(client(receiver.host), receiver.url).kind == "delivered"
        assert proxy.journal == []


def test_a_cookie_is_not_carried_to_the_next_webhook(receiver: Receiver) -> None:
    receiver.respond = lambda request: Reply(headers={"Set-Cookie": "session=1; Path=/"})
    sender = client(receiver.host)
    send(sender, receiver.url)
    send(sender, receiver.url)
    assert "cookie" not in receiver.journal[1].headers


def test_a_refused_connection_is_retried() -> None:
    host = f"127.0.0.1:{free_port()}"
    answer = send(client(host), f"http://{host}")
    assert answer == Answer("retry", None, None, f"http://{host}: the connection was refused")


def test_a_name_that_does_not_resolve_is_retried() -> None:
    answer = send(client("nobody.invalid"), "https://nobody.invalid")
    assert answer.kind == "retry"
    assert TOKEN not in answer.reason


def test_a_receiver_that_hangs_is_given_up_at_the_deadline() -> None:
    def hang(connection: Any, done: threading.Event) -> None:
        done.wait(60)

    with raw_server(hang) as base:
        answer = send(client(base, total_deadline_seconds=0.6), base)
    assert answer.kind == "retry"
    assert answer.reason.endswith("there was no whole answer within 0.6 seconds")


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_drip_of_header_bytes_ends_at_the_deadline_and_is_no_delivery(
    head: bytes, over_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = server_context(tmp_path, monkeypatch) if over_tls else None
    with raw_server(drip(head, b"1"), tls=tls) as base:
        began = time.monotonic()
        answer = send(client(base, total_deadline_seconds=0.7), base)
        # Each read gets its byte in time, so the library's own time-out would never come.
        assert time.monotonic() - began < 30
    assert answer.kind == "retry"
    assert "no whole answer within 0.7 seconds" in answer.reason


def test_a_drip_of_body_bytes_holds_nobody_up() -> None:
    with raw_server(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x")) as base:
        began = time.monotonic()
        answer = send(client(base, total_deadline_seconds=0.7), base)
        assert time.monotonic() - began < 30
    # The status line is the answer: the event has arrived.
    assert (answer.kind, answer.status) == ("delivered", 200)


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"200 OK", "delivered"), (b"302 Found\r\nLocation: /elsewhere", "refused")],
)
def test_an_endless_body_is_not_read_to_its_end(head: bytes, kind: str) -> None:
    def pour(connection: Any, done: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n")
        while not done.is_set():
            connection.sendall(b"x" * 65536)

    with raw_server(pour) as base:
        assert send(client(base, total_deadline_seconds=10), base).kind == kind


def test_a_connection_that_breaks_after_the_status_is_a_delivery() -> None:
    def break_off(connection: Any, done: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    with raw_server(break_off) as base:
        assert send(client(base), base).kind == "delivered"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1", b"nonsense\r\n\r\n"])
def test_a_connection_that_breaks_before_the_status_is_retried(said: bytes) -> None:
    with raw_server(lambda connection, done: connection.sendall(said)) as base:
        answer = send(client(base), base)
    assert (answer.kind, answer.status) == ("retry", None)
    assert TOKEN not in answer.reason


def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(connection: Any, done: threading.Event) -> None:
        connection.sendall(raw_answer(200, [], b"{}"))

    tls = server_context(tmp_path, monkeypatch)
    with raw_server(accept, tls=tls) as base:
        assert send(client(base), base).kind == "delivered"
        monkeypatch.undo()
        answer = send(client(base), base)
    assert answer.kind == "retry"
    assert answer.reason.endswith("there was no TLS connection")


def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it() -> None:
    for token in ("two\nlines-of-token", "tökén", "a b"):
        with pytest.raises(ValueError, match="token") as caught:
            WebhookClient(token, allow_list=WebhookAllowList([], require_https=True))
        assert token not in str(caught.value)


def test_without_a_token_no_authorization_is_sent(receiver: Receiver) -> None:
    allow_list = WebhookAllowList([receiver.host], require_https=False)
    sender = WebhookClient(None, allow_list=allow_list)
    assert send(sender, receiver.url).kind == "delivered"
    assert "authorization" not in receiver.journal[0].headers


def test_no_thread_and_no_connection_is_left_behind(receiver: Receiver) -> None:
    sender = client(receiver.host)
    send(sender, receiver.url)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        send(sender, receiver.url)
    receiver.wait_for(lambda journal: len(journal) == 21, 30)
    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.is_alive()]
    for timer in timers:
        timer.join(30)
        assert not timer.is_alive()
    # The receiver's own ends of the connections close on its threads, a little later.
    deadline = time.monotonic() + 30
    while len(list(Path("/proc/self/fd").iterdir())) > before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_threads_may_send_at_once(receiver: Receiver) -> None:
    sender = client(receiver.host)
    answers: list[Answer] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(
                send(sender, receiver.url, idempotency_key=f"job-{n}:complete")
            )
        )
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.kind for answer in answers] == ["delivered"] * 16
    keys = {request.headers["idempotency-key"] for request in receiver.journal}
    assert keys == {f"job-{n}:complete" for n in range(16)}


def test_the_receivers_hook_sees_the_request(receiver: Receiver) -> None:
    seen: list[Received] = []

    def respond(request: Received) -> Reply:
        seen.append(request)
        return Reply(202)

    receiver.respond = respond
    assert send(client(receiver.host), receiver.url).status == 202
    assert seen[0].json == {"style_id": 10, "note": "ö"}
    assert seen[0].event == "complete"


def test_what_is_not_ours_to_send_any_more_is_not_sent(receiver: Receiver) -> None:
    answer = send(client(receiver.host), receiver.url, still_ours=lambda: False)
    assert answer.kind == "withheld"
    assert receiver.journal == []
    assert send(client(receiver.host), receiver.url).kind == "delivered"


def test_whether_it_is_ours_is_asked_only_when_the_connection_stands() -> None:
    """A process may stand still while it connects, and be replaced meanwhile."""
    connected: list[bool] = []

    def talk(connection: Any, done: threading.Event) -> None:
        raise AssertionError("a request was sent")

    with raw_server(talk) as url:
        address = url.removeprefix("http://")
        port = int(address.rpartition(":")[2])

        def still_ours() -> bool:
            with open("/proc/self/net/tcp") as file:
                connected.append(f"0100007F:{port:04X} 01" in file.read())
            return False

        assert send(client(address), url, still_ours=still_ours).kind == "withheld"
    assert connected == [True]
