"""What a store does wrong, and what the worker makes of it."""

import base64
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.servers import drip, free_port, proxy_to, raw_answer, raw_server
from worker.demo.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from worker.storage import s3
from worker.storage.s3 import S3Store
from worker.storage.store import (
    AccessDenied,
    ObjectUrl,
    PreconditionFailed,
    StorageError,
    StoreUnavailable,
)

Headers = list[tuple[str, str]]


def store_at(endpoint_url: str, **arguments: Any) -> S3Store:
    return S3Store(
        endpoint_url=endpoint_url,
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        **arguments,
    )


def test_a_write_whose_answer_was_lost_is_not_taken_for_anothers(
    s3_server: S3Server, s3_bucket: str
) -> None:
    puts: list[int] = []

    def lose_the_first(method: str, status: int, headers: Headers, body: bytes) -> bytes | None:
        if method == "PUT":
            puts.append(status)
            if len(puts) == 1:
                return b""
        return None

    url = ObjectUrl(s3_bucket, "jobs/1/lease.json")
    with proxy_to(s3_server.endpoint_url, lose_the_first) as endpoint_url:
        store = store_at(endpoint_url)
        etag = store.write(url, b"mine", content_type="text/plain", only_if_absent=True)
    # The second try met the first one's object, and it was ours.
    assert puts == [200, 412]
    stored = store_at(s3_server.endpoint_url).read(url)
    assert stored is not None
    assert stored.etag == etag


def test_the_same_bytes_written_by_another_are_anothers(s3_store: S3Store, s3_bucket: str) -> None:
    url = ObjectUrl(s3_bucket, "jobs/1/lease.json")
    s3_store.write(url, b"same", content_type="text/plain", only_if_absent=True)
    with pytest.raises(PreconditionFailed):
        s3_store.write(url, b"same", content_type="text/plain", only_if_absent=True)


def test_a_truncated_body_is_transient_and_leaves_no_file(
    s3_server: S3Server, s3_store: S3Store, s3_bucket: str, tmp_path: Path
) -> None:
    def cut(method: str, status: int, headers: Headers, body: bytes) -> bytes | None:
        return raw_answer(status, headers, body)[:-5] if method == "GET" else None

    url = ObjectUrl(s3_bucket, "a.jpg")
    s3_store.write(url, b"0123456789", content_type="image/jpeg")
    with proxy_to(s3_server.endpoint_url, cut) as endpoint_url:
        store = store_at(endpoint_url)
        with pytest.raises(StoreUnavailable):
            store.download(url, tmp_path / "a.jpg", max_bytes=100)
        with pytest.raises(StoreUnavailable):
            store.read(url)
    assert list(tmp_path.iterdir()) == []


def test_a_body_changed_on_the_way_is_noticed(
    s3_server: S3Server, s3_store: S3Store, s3_bucket: str, tmp_path: Path
) -> None:
    def change(method: str, status: int, headers: Headers, body: bytes) -> bytes | None:
        return raw_answer(status, headers, body[:-1] + b"X") if method == "GET" else None

    url = ObjectUrl(s3_bucket, "checkpoint")
    (tmp_path / "source").write_bytes(b"0123456789")
    digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    s3_store.upload(url, tmp_path / "source", content_type="text/plain", sha256_hex=digest)
    with (
        proxy_to(s3_server.endpoint_url, change) as endpoint_url,
        pytest.raises(StoreUnavailable, match="another digest"),
    ):
        store_at(endpoint_url).download(url, tmp_path / "target", max_bytes=100)
    assert not (tmp_path / "target").exists()


def test_an_upload_that_the_store_cut_short_is_not_called_done(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    def shrink(method: str, status: int, headers: Headers, body: bytes) -> bytes | None:
        if method != "HEAD":
            return None
        kept = [(n, v) for n, v in headers if n.lower() != "content-length"]
        return raw_answer(status, [*kept, ("Content-Length", "3")], b"")

    (tmp_path / "source").write_bytes(b"0123456789")
    with (
        proxy_to(s3_server.endpoint_url, shrink) as endpoint_url,
        pytest.raises(StoreUnavailable, match="3 bytes instead of 10"),
    ):
        store_at(endpoint_url).upload(
            ObjectUrl(s3_bucket, "a"), tmp_path / "source", content_type="text/plain"
        )


def test_a_slow_drip_ends_at_the_deadline(tmp_path: Path) -> None:
    head = raw_answer(
        200,
        [("Content-Length", "1000"), ("ETag", '"1"'), ("Content-Type", "image/png")],
        b"",
    )
    with (
        raw_server(drip(head, b"x")) as endpoint_url,
        pytest.raises(StoreUnavailable, match=r"within 0.7 seconds"),
    ):
        store_at(endpoint_url, attempts=1).download(
            ObjectUrl("bucket", "key"), tmp_path / "t", max_bytes=5000, deadline_seconds=0.7
        )
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_ignores_conditions_is_found_out(s3_server: S3Server, s3_bucket: str) -> None:
    with proxy_to(
        s3_server.endpoint_url, without_headers=("if-none-match", "if-match")
    ) as endpoint_url:
        found = store_at(endpoint_url).probe(ObjectUrl(s3_bucket, "jobs/"))
    assert found.writable
    assert not found.conditional_put
    assert found.reason == "The store overwrites an object in spite of If-None-Match."


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_overloaded_store_is_transient_even_without_a_message(status: int) -> None:
    # An error document without a Message: botocore gives None for it.
    document = b"<Error><Code>SlowDown</Code></Error>"

    def talk(connection: Any, done: threading.Event) -> None:
        connection.sendall(raw_answer(status, [("Content-Type", "application/xml")], document))

    with raw_server(talk) as endpoint_url, pytest.raises(StoreUnavailable) as caught:
        store_at(endpoint_url, attempts=1).read(ObjectUrl("bucket", "key"))
    assert caught.value.transient
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_permanent(code: str) -> None:
    document = f"<Error><Code>{code}</Code><Message/></Error>".encode()

    def talk(connection: Any, done: threading.Event) -> None:
        connection.sendall(raw_answer(403, [], document))

    with raw_server(talk) as endpoint_url, pytest.raises(AccessDenied) as caught:
        store_at(endpoint_url, attempts=1).read(ObjectUrl("bucket", "key"))
    assert not caught.value.transient
    assert SECRET_ACCESS_KEY not in caught.value.message


def test_a_store_that_is_not_there_is_transient_and_its_address_stays_unsaid() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable) as caught:
        store_at(f"http://127.0.0.1:{port}", attempts=1).read(ObjectUrl("bucket", "key"))
    assert str(port) not in str(caught.value)


def test_missing_credentials_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_server: S3Server
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = S3Store(endpoint_url=s3_server.endpoint_url)
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        store.read(ObjectUrl("bucket", "key"))


def test_credentials_come_from_the_sdks_own_names(
    s3_environment: dict[str, str], s3_bucket: str
) -> None:
    store = S3Store(endpoint_url=s3_environment["S3_ENDPOINT_URL"])
    assert store.read(ObjectUrl(s3_bucket, "key")) is None


def test_a_key_that_the_store_cannot_take_is_permanent(s3_store: S3Store) -> None:
    with pytest.raises(StorageError) as caught:
        s3_store.write(ObjectUrl("bad bucket!", "key"), b"1", content_type="text/plain")
    assert not caught.value.transient


def test_requests_are_signed_with_version_4(s3_server: S3Server) -> None:
    address = s3_server.client().generate_presigned_url(
        "get_object", Params={"Bucket": "bucket", "Key": "key"}
    )
    assert "X-Amz-Signature=" in address


def test_a_large_file_is_uploaded_in_parts(
    s3_server: S3Server, s3_client: Any, s3_bucket: str, tmp_path: Path, mocker: Any
) -> None:
    mocker.patch.object(s3, "MULTIPART_BYTES", 10 * 1024 * 1024)
    body = b"0123456789abcdef" * 700_000
    (tmp_path / "source").write_bytes(body)
    url = ObjectUrl(s3_bucket, "large")
    store = s3_server.store()
    store.upload(url, tmp_path / "source", content_type="application/octet-stream")
    assert s3_client.head_object(Bucket=s3_bucket, Key="large")["ETag"].endswith('-3"')
    store.copy(url, ObjectUrl(s3_bucket, "copy"))
    store.download(ObjectUrl(s3_bucket, "copy"), tmp_path / "target", max_bytes=len(body))
    assert (tmp_path / "target").read_bytes() == body


def test_an_upload_carries_a_checksum_that_the_store_can_verify(
    s3_store: S3Store, s3_client: Any, s3_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"0123456789")
    url = ObjectUrl(s3_bucket, "adapter")
    s3_store.upload(url, tmp_path / "source", content_type="application/octet-stream")
    head = s3_client.head_object(Bucket=s3_bucket, Key="adapter", ChecksumMode="ENABLED")
    expected = hashlib.sha256(b"0123456789").digest()
    assert base64.b64decode(head["ChecksumSHA256"]) == expected


class Captured(Exception):  # noqa: N818 - what happened
    """A request as it would have been sent."""


@pytest.mark.parametrize(
    ("endpoint_url", "checked"),
    [
        ("http://127.0.0.1:1", True),
        ("https://s3.eu-central-1.amazonaws.com", True),
        ("https://store.example.com", False),
        ("https://amazonaws.com.example.com", False),
    ],
)
def test_a_file_goes_to_foreign_servers_in_a_form_that_all_of_them_know(
    endpoint_url: str, checked: bool, tmp_path: Path
) -> None:
    store = S3Store(endpoint_url=endpoint_url, access_key_id="a", secret_access_key="b")
    path = tmp_path / "file"
    path.write_bytes(b"1")

    def capture(request: Any, **_: Any) -> None:
        raise Captured({name.lower() for name in request.headers})

    store._client.meta.events.register("before-send.s3.PutObject", capture)
    with pytest.raises(Captured) as caught:
        store.upload(ObjectUrl("bucket", "key"), path, content_type="text/plain")
    (names,) = caught.value.args
    assert bool(names & {"x-amz-trailer", "x-amz-checksum-sha256"}) == checked
    assert ("content-length" in names) == (not checked or endpoint_url.startswith("http:"))
