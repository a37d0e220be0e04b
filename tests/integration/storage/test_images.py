"""Pictures come from where the operator allows, whole, or with a sentence why not."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.servers import drip, raw_answer, raw_server
from tests.fixtures.tls import server_context
from worker.storage import images
from worker.storage.bucket_list import BucketList
from worker.storage.image_sources import ImageSources, caption_key
from worker.storage.images import FetchedImage, ImageFetcher, ImageProblem
from worker.storage.s3 import S3Store
from worker.storage.store import ObjectStore, ObjectUrl, StoreUnavailable


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RETRY_WAITS_SECONDS", (0.01, 0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def fetcher(store: ObjectStore, *, deadline_seconds: float = 20, **changes: Any) -> ImageFetcher:
    settings: dict[str, Any] = {
        "s3": store,
        "gs_as_s3": False,
        "buckets": BucketList((), own_bucket="results"),
        "https_hosts": (),
        "allow_files": False,
        "max_bytes": 1000,
    }
    sources = ImageSources(**settings | changes)
    return ImageFetcher(sources, parallelism=4, deadline_seconds=deadline_seconds)


def put(store: ObjectStore, bucket: str, key: str, body: bytes) -> str:
    store.write(ObjectUrl(bucket, key), body, content_type="image/jpeg")
    return f"s3://{bucket}/{key}"


def one(found: list[FetchedImage | ImageProblem]) -> Any:
    assert len(found) == 1
    return found[0]


def test_two_keys_with_one_basename_become_two_files(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    urls = [put(s3_store, s3_bucket, f"{name}/1.jpg", name.encode()) for name in ("a", "b")]
    found = fetcher(s3_store).fetch([(url, None) for url in urls], folder)
    assert [f.path.read_bytes() for f in found if isinstance(f, FetchedImage)] == [b"a", b"b"]
    assert [f.url for f in found] == urls


def test_captions_come_from_the_message_then_from_the_text_beside(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    urls = [put(s3_store, s3_bucket, f"{n}.x.jpg", b"1") for n in range(3)]
    for number in range(2):
        put(s3_store, s3_bucket, f"{number}.x.txt", "\ufeff a fox, ölbild\n".encode())
    wanted = [(urls[0], "given"), (urls[1], None), (urls[2], None)]
    found = fetcher(s3_store).fetch(wanted, folder)
    assert [f.caption for f in found if isinstance(f, FetchedImage)] == [
        "given",
        "a fox, ölbild",
        None,
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"x" * 20_000, "has a .txt beside it of more than 16384 bytes"),
        (b"\xff\xfe\xfa", "has a .txt beside it that is not UTF-8"),
    ],
)
def test_a_text_that_is_no_caption_is_named(
    s3_store: S3Store, s3_bucket: str, folder: Path, body: bytes, reason: str
) -> None:
    url = put(s3_store, s3_bucket, "1.jpg", b"1")
    put(s3_store, s3_bucket, "1.txt", body)
    assert one(fetcher(s3_store).fetch([(url, None)], folder)) == ImageProblem(
        0, url, reason, transient=False
    )


def test_every_missing_picture_is_named_and_the_rest_are_there(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    there = put(s3_store, s3_bucket, "there.jpg", b"1")
    missing = [f"s3://{s3_bucket}/no-1.jpg", f"s3://{s3_bucket}/no-2.jpg"]
    nowhere = "s3://no-such-bucket/1.jpg"
    found = fetcher(s3_store).fetch(
        [(u, "") for u in (missing[0], there, missing[1], nowhere)], folder
    )
    assert isinstance(found[1], FetchedImage)
    assert [found[i] for i in (0, 2, 3)] == [
        ImageProblem(0, missing[0], "does not exist", transient=False),
        ImageProblem(2, missing[1], "does not exist", transient=False),
        ImageProblem(3, nowhere, "names a bucket that does not exist", transient=False),
    ]


def test_too_large_a_picture_is_refused(s3_store: S3Store, s3_bucket: str, folder: Path) -> None:
    url = put(s3_store, s3_bucket, "1.jpg", b"x" * 1001)
    problem = one(fetcher(s3_store).fetch([(url, None)], folder))
    assert problem == ImageProblem(0, url, "has more than 1000 bytes", transient=False)


def test_gs_addresses_are_read_at_the_s3_endpoint_where_one_is_set(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    url = put(s3_store, s3_bucket, "1.jpg", b"1").replace("s3://", "gs://")
    got = one(fetcher(s3_store, gs_as_s3=True).fetch([(url, None)], folder))
    assert (got.url, got.path.read_bytes()) == (url, b"1")
    problem = one(fetcher(s3_store).fetch([(url, None)], folder))
    assert "gs://" in problem.reason
    assert not problem.transient


def test_only_what_the_operator_allows_is_read_from_the_store(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    """The picture and the text beside it: no other bucket, no other folder, no way around."""
    put(s3_store, s3_bucket, "train/1.jpg", b"1")
    put(s3_store, s3_bucket, "others/1.jpg", b"secret")
    listed = BucketList([f"{s3_bucket}/train/"], own_bucket="results")
    tricks = ("others/1.jpg", "train/../others/1.jpg", "train/%2e%2e/others/1.jpg", "/train/1.jpg")
    urls = [f"s3://{s3_bucket}/{key}" for key in ("train/1.jpg", *tricks)]
    got, *refused = fetcher(s3_store, buckets=listed).fetch([(url, None) for url in urls], folder)
    assert isinstance(got, FetchedImage)
    assert [type(one) for one in refused[:2]] == [ImageProblem] * 2
    assert all(isinstance(one, ImageProblem) and not one.transient for one in refused)
    assert b"secret" not in b"".join(path.read_bytes() for path in folder.iterdir())


class Flaky:
    """A store whose first answers fail."""

    def __init__(self, store: ObjectStore, failures: int) -> None:
        self._store, self.left, self.calls = store, failures, 0
        self.read = store.read

    def download(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise StoreUnavailable("The store is away.")
        return self._store.download(*args, **kwargs)


def test_a_failure_that_passes_is_tried_again(
    s3_store: S3Store, s3_bucket: str, folder: Path
) -> None:
    url = put(s3_store, s3_bucket, "1.jpg", b"1")
    flaky: Any = Flaky(s3_store, failures=2)
    assert isinstance(one(fetcher(flaky).fetch([(url, None)], folder)), FetchedImage)
    away: Any = Flaky(s3_store, failures=100)
    problem = one(fetcher(away).fetch([(url, None)], folder))
    assert problem.transient
    assert away.calls == 3


def test_a_stop_leaves_the_rest_for_later(s3_store: S3Store, s3_bucket: str, folder: Path) -> None:
    url = put(s3_store, s3_bucket, "1.jpg", b"1")
    found = fetcher(s3_store).fetch([(url, None)] * 3, folder, should_stop=lambda: True)
    assert all(isinstance(f, ImageProblem) and f.transient for f in found)
    assert list(folder.iterdir()) == []


def test_local_files_are_read_only_where_allowed(
    s3_store: S3Store, folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "my picture.png"
    picture.write_bytes(b"1")
    picture.with_suffix(".txt").write_text("a cat")
    url = picture.as_uri()
    got = one(fetcher(s3_store, allow_files=True).fetch([(url, None)], folder))
    assert (got.caption, got.path.read_bytes()) == ("a cat", b"1")
    problem = one(fetcher(s3_store).fetch([(url, None)], folder))
    assert "local file" in problem.reason


def test_only_plain_files_are_read(s3_store: S3Store, folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    wanted = [
        ((tmp_path / "pipe").as_uri(), None),
        ("file:///dev/zero", None),
        (tmp_path.as_uri(), None),
        ((tmp_path / "none").as_uri(), None),
        ("file://host/share/1.jpg", None),
        ("file:///%00", None),
    ]
    found = fetcher(s3_store, allow_files=True).fetch(wanted, folder)
    assert [f.reason for f in found if isinstance(f, ImageProblem)] == [
        "is not a plain file",
        "is not a plain file",
        "is not a plain file",
        "does not exist",
        "is not of the form file:///folder/name",
        "cannot be read",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/1.jpg",
        "https://127.0.0.1@elsewhere.example/1.jpg",
        "https://127.0.0.1:1@elsewhere.example/1.jpg",
        "https://127.0.0.1./1.jpg",
        "https://127.0.0.1:444/1.jpg",
        "http://127.0.0.1/1.jpg",
        "ftp://127.0.0.1/1.jpg",
        "s3://",
        "s3://bucket",
        "s3://bucket/folder/",
        "s3://UPPER bucket/key",
    ],
)
def test_an_address_that_is_not_allowed_is_not_asked(
    s3_store: S3Store, folder: Path, url: str
) -> None:
    problem = one(fetcher(s3_store, https_hosts=["127.0.0.1"]).fetch([(url, None)], folder))
    assert isinstance(problem, ImageProblem)
    assert not problem.transient


def https_answering(status: int, body: bytes, *headers: tuple[str, str]) -> Any:
    def talk(connection: Any, done: threading.Event) -> None:
        connection.sendall(raw_answer(status, list(headers), body))

    return talk


def test_a_picture_comes_over_https_from_an_allowed_host(
    s3_store: S3Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = server_context(tmp_path, monkeypatch)
    with raw_server(https_answering(200, b"picture"), tls=tls) as server:
        allowed = fetcher(s3_store, https_hosts=[server.removeprefix("https://")])
        got = one(allowed.fetch([(f"{server}/1.jpg?signature=s3cr3t", None)], folder))
    assert got.path.read_bytes() == b"picture"
    # A presigned address opens the picture to whoever reads it: reports show it without the query.
    assert got.url == f"{server}/1.jpg"


@pytest.mark.parametrize(
    ("status", "transient", "tries"),
    [(404, False, 1), (403, False, 1), (302, False, 1), (503, True, 3), (429, True, 3)],
)
def test_what_an_https_server_answers_decides(
    s3_store: S3Store,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    transient: bool,
    tries: int,
) -> None:
    tls, asked = server_context(tmp_path, monkeypatch), []

    def talk(connection: Any, done: threading.Event) -> None:
        asked.append(status)
        connection.sendall(raw_answer(status, [("Location", "https://elsewhere/")], b""))

    with raw_server(talk, tls=tls) as server:
        allowed = fetcher(s3_store, https_hosts=[server.removeprefix("https://")])
        problem = one(allowed.fetch([(f"{server}/1.jpg", None)], folder))
    assert problem.reason == f"was answered with {status}"
    assert problem.transient is transient
    assert len(asked) == tries


def test_an_https_body_that_breaks_off_or_grows_is_not_a_picture(
    s3_store: S3Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = server_context(tmp_path, monkeypatch)
    short = https_answering(200, b"12345", ("Content-Length", "10"))
    with raw_server(short, tls=tls) as server:
        allowed = fetcher(s3_store, https_hosts=[server.removeprefix("https://")])
        assert one(allowed.fetch([(f"{server}/1.jpg", None)], folder)).transient
    large = https_answering(200, b"x" * 2000)
    with raw_server(large, tls=tls) as server:
        allowed = fetcher(s3_store, https_hosts=[server.removeprefix("https://")])
        problem = one(allowed.fetch([(f"{server}/1.jpg", None)], folder))
    assert problem.reason == "has more than 1000 bytes"


@pytest.mark.parametrize("where", ["headers", "body"])
def test_an_https_drip_ends_at_the_deadline(
    s3_store: S3Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 900\r\n\r\n" if where == "body" else b"X: ")
    tls = server_context(tmp_path, monkeypatch)
    with raw_server(drip(head, b"x"), tls=tls) as server:
        allowed = fetcher(
            s3_store, https_hosts=[server.removeprefix("https://")], deadline_seconds=0.8
        )
        began = time.monotonic()
        problem = one(allowed.fetch([(f"{server}/1.jpg", None)], folder))
        # The drip alone would take minutes.
        assert time.monotonic() - began < 30
    assert problem.transient
    assert "no whole answer within" in problem.reason


@pytest.mark.parametrize(
    ("key", "beside"),
    [
        ("a/b.jpg", "a/b.txt"),
        ("b.tar.png", "b.tar.txt"),
        ("a.d/b", "a.d/b.txt"),
        ("a//b.jpg", "a//b.txt"),
        (".jpg", ".jpg.txt"),
    ],
)
def test_the_caption_lies_under_the_same_key_with_suffix_txt(key: str, beside: str) -> None:
    assert caption_key(key) == beside
