"""Two hosts listen, one is allowed: whatever an address looks like, the other hears nothing.

Not the allow-list is asked here but the machine: which connections were made, and to where?
"""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.servers import raw_answer, raw_server
from tests.fixtures.tls import server_context
from tests.url_tricks import TRICKS
from worker.demo.receiver import Receiver, Reply
from worker.storage.bucket_list import BucketList
from worker.storage.image_sources import ImageSources
from worker.storage.images import FetchedImage, ImageFetcher
from worker.storage.local import LocalStore
from worker.webhooks.allow_list import WebhookAllowList
from worker.webhooks.client import WebhookClient

PATH = "/api/webhooks/training/complete"


class Reached:
    """What this thread has looked up and connected to."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.places: list[Any] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread != threading.get_ident():
            return
        if event == "socket.getaddrinfo":
            self.places.append((arguments[0], int(arguments[1])))
        elif event == "socket.connect":
            self.places.append(arguments[1][:2])


_reached = Reached()
# A hook of the interpreter cannot be taken back, so there is one, and it listens only when told to.
sys.addaudithook(_reached.hear)


@pytest.fixture
def reached() -> Iterator[Reached]:
    _reached.places, _reached.thread = [], threading.get_ident()
    yield _reached
    _reached.thread = None


@pytest.fixture(scope="module")
def wrong() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def spelled(trick: str, scheme: str, right: str, wrong: str) -> str:
    ports = {"right_port": right.rpartition(":")[2], "wrong_port": wrong.rpartition(":")[2]}
    return trick.format(scheme=scheme, right=right, wrong=wrong, **ports)


def test_there_are_more_than_fifty_tricks() -> None:
    assert len(set(TRICKS)) == len(TRICKS) >= 50


@pytest.mark.parametrize("trick", TRICKS)
def test_a_webhook_reaches_the_right_host_or_none(
    receiver: Receiver, wrong: Receiver, reached: Reached, trick: str
) -> None:
    allow_list = WebhookAllowList([receiver.host], require_https=False)
    client = WebhookClient("token", allow_list=allow_list, total_deadline_seconds=5)
    url = spelled(trick, "http", receiver.host, wrong.host)
    answer = client.send("POST", url, PATH, b"{}", "job-1:complete")
    assert (answer.kind, answer.status) == ("refused", None)
    # Not even a name was looked up: that alone would tell its owner something.
    assert reached.places == []
    assert wrong.journal == receiver.journal == []


def test_the_right_address_is_reached_and_seen_to_be(receiver: Receiver, reached: Reached) -> None:
    allow_list = WebhookAllowList([receiver.host], require_https=False)
    client = WebhookClient("token", allow_list=allow_list)
    assert client.send("POST", receiver.url, PATH, b"{}", "job-1:complete").kind == "delivered"
    port = int(receiver.host.rpartition(":")[2])
    assert set(reached.places) == {("127.0.0.1", port)}


def test_a_name_that_is_allowed_is_looked_up_once_and_reached_at_what_was_found(
    receiver: Receiver, wrong: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may answer each question otherwise: asked twice, a check would mean nothing."""
    asked, plain = [], socket.getaddrinfo
    answers = [receiver.host, wrong.host]

    def resolve(host: str, port: int, *rest: Any, **others: Any) -> Any:
        asked.append(host)
        place = answers[min(len(asked), len(answers)) - 1]
        return plain("127.0.0.1", int(place.rpartition(":")[2]), *rest, **others)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    allow_list = WebhookAllowList(["api.example.com"], require_https=False)
    client = WebhookClient("token", allow_list=allow_list)
    url = "http://api.example.com"
    assert client.send("POST", url, PATH, b"{}", "job-1:complete").kind == "delivered"
    assert asked == ["api.example.com"]
    assert (len(receiver.journal), wrong.journal) == (1, [])


def fetcher(folder: Path, *hosts: str) -> ImageFetcher:
    return ImageFetcher(
        ImageSources(
            s3=LocalStore(folder / "store"),
            gs_as_s3=False,
            buckets=BucketList((), own_bucket="results"),
            https_hosts=hosts,
            allow_files=False,
            max_bytes=1000,
        ),
        parallelism=1,
        deadline_seconds=5,
    )


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, list]]:
    """Two picture servers over TLS that this machine trusts; what was asked of the second."""
    tls, asked = server_context(tmp_path, monkeypatch), []

    def answer(connection: Any, done: threading.Event) -> None:
        connection.sendall(raw_answer(200, [], b"picture"))

    def note(connection: Any, done: threading.Event) -> None:
        asked.append(connection)
        answer(connection, done)

    with raw_server(answer, tls=tls) as right, raw_server(note, tls=tls) as other:
        yield right.removeprefix("https://"), other.removeprefix("https://"), asked


def test_a_picture_comes_from_the_right_host_or_none(
    pictures: tuple[str, str, list], tmp_path: Path
) -> None:
    right, wrong, asked = pictures
    (tmp_path / "pictures").mkdir()
    # The message's parser lets only some schemes through; the fetcher stands by itself.
    urls = [spelled(trick, "https", right, wrong) for trick in TRICKS]
    found = fetcher(tmp_path, right).fetch([(url, None) for url in urls], tmp_path / "pictures")
    assert [one.url for one in found if isinstance(one, FetchedImage)] == []
    assert asked == []
    assert list((tmp_path / "pictures").iterdir()) == []
    (good,) = fetcher(tmp_path, right).fetch([(f"https://{right}/1.jpg", None)], tmp_path)
    assert isinstance(good, FetchedImage)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_picture_that_is_elsewhere_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    tls = server_context(tmp_path, monkeypatch)
    with Receiver() as elsewhere:

        def talk(connection: Any, done: threading.Event) -> None:
            connection.sendall(raw_answer(status, [("Location", f"{elsewhere.url}/1.jpg")], b""))

        with raw_server(talk, tls=tls) as server:
            host = server.removeprefix("https://")
            (found,) = fetcher(tmp_path, host).fetch([(f"{server}/1.jpg", None)], tmp_path)
        assert elsewhere.journal == []
    assert not isinstance(found, FetchedImage)


def test_neither_proxy_nor_netrc_of_the_environment_has_to_do_with_a_picture(
    pictures: tuple[str, str, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, _, _ = pictures
    (tmp_path / ".netrc").write_text("default login someone password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Receiver(respond=lambda _: Reply(502)) as proxy:
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        (found,) = fetcher(tmp_path, right).fetch([(f"https://{right}/1.jpg", None)], tmp_path)
        assert proxy.journal == []
    assert isinstance(found, FetchedImage)
