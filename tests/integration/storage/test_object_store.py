"""What holds for every object store: the same promises on two S3 servers and on local files."""

import hashlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.object_server import ObjectServer
from worker.storage.local import LocalStore
from worker.storage.store import (
    BucketMissing,
    ObjectMissing,
    ObjectStore,
    ObjectTooLarge,
    ObjectUrl,
    PreconditionFailed,
    StorageError,
    StoreAbilities,
)


@pytest.fixture(scope="module")
def object_server() -> Iterator[ObjectServer]:
    """The server of the benchmarks, which must be a true S3 for what they measure to be true."""
    with ObjectServer() as server:
        yield server


@pytest.fixture(params=["s3", "benchmark", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    match kind:
        case "s3":
            return request.getfixturevalue("s3_store")
        case "benchmark":
            return request.getfixturevalue("object_server").store()
    return LocalStore(tmp_path / "store", buckets=[request.getfixturevalue("bucket")])


@pytest.fixture
def bucket(kind: str, request: pytest.FixtureRequest) -> str:
    match kind:
        case "s3":
            return request.getfixturevalue("s3_bucket")
        case "benchmark":
            name = f"test-{uuid.uuid4().hex[:16]}"
            request.getfixturevalue("object_server").client().create_bucket(Bucket=name)
            return name
    return "pictures"


@pytest.fixture
def url(bucket: str) -> ObjectUrl:
    return ObjectUrl(bucket, "jobs/a b/lease.json")


def put(store: ObjectStore, url: ObjectUrl, body: bytes, **condition: object) -> str:
    return store.write(url, body, content_type="application/json", **condition)  # type: ignore[arg-type]


def test_what_is_written_is_read_with_its_version_and_age(
    store: ObjectStore, url: ObjectUrl
) -> None:
    etag = put(store, url, b'{"owner": 1}')
    stored = store.read(url)
    assert stored is not None
    assert (stored.body, stored.etag) == (b'{"owner": 1}', etag)
    assert stored.last_modified.tzinfo is not None
    assert 0 <= stored.age_seconds < 60


def test_an_absent_object_reads_as_none(store: ObjectStore, url: ObjectUrl) -> None:
    assert store.read(url) is None
    assert store.head(url) is None


def test_only_if_absent_never_replaces(store: ObjectStore, url: ObjectUrl) -> None:
    put(store, url, b"first", only_if_absent=True)
    with pytest.raises(PreconditionFailed):
        put(store, url, b"second", only_if_absent=True)
    stored = store.read(url)
    assert stored is not None
    assert stored.body == b"first"


def test_only_if_etag_replaces_that_version_alone(store: ObjectStore, url: ObjectUrl) -> None:
    first = put(store, url, b"first")
    second = put(store, url, b"second", only_if_etag=first)
    assert second != first
    with pytest.raises(PreconditionFailed):
        put(store, url, b"third", only_if_etag=first)
    stored = store.read(url)
    assert stored is not None
    assert (stored.body, stored.etag) == (b"second", second)


def test_only_if_etag_never_brings_a_deleted_object_back(
    store: ObjectStore, url: ObjectUrl
) -> None:
    etag = put(store, url, b"first")
    store.delete(url)
    with pytest.raises(PreconditionFailed):
        put(store, url, b"second", only_if_etag=etag)
    assert store.read(url) is None


def test_of_many_local_claims_at_once_exactly_one_wins(tmp_path: Path) -> None:
    # On local files the atomicity is ours to keep; on S3 it is the server's.
    store, url = LocalStore(tmp_path), ObjectUrl("bucket", "jobs/1/lease.json")
    won: list[int] = []
    start = threading.Barrier(8)

    def claim(number: int) -> None:
        start.wait()
        try:
            put(store, url, b"the same bytes from everybody", only_if_absent=True)
        except PreconditionFailed:
            return
        won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_file_comes_back_as_it_was_uploaded(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    url = ObjectUrl(bucket, "models/style_1/lora_weights.safetensors")
    body = bytes(range(256)) * 4096
    digest = hashlib.sha256(body).hexdigest()
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(body)
    store.upload(url, source, content_type="application/octet-stream", sha256_hex=digest)
    fetched = store.download(url, target, max_bytes=len(body))
    assert target.read_bytes() == body
    assert (fetched.bytes, fetched.sha256) == (len(body), digest)
    head = store.head(url)
    assert head is not None
    assert (head.bytes, head.sha256) == (len(body), digest)


def test_an_empty_file_is_a_file(store: ObjectStore, url: ObjectUrl, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.upload(url, tmp_path / "empty", content_type="text/plain")
    assert store.download(url, tmp_path / "copy", max_bytes=0).bytes == 0
    assert (tmp_path / "copy").read_bytes() == b""


def test_too_large_an_object_is_not_taken(
    store: ObjectStore, url: ObjectUrl, tmp_path: Path
) -> None:
    put(store, url, b"12345")
    with pytest.raises(ObjectTooLarge, match="5 bytes; at most 4"):
        store.download(url, tmp_path / "target", max_bytes=4)
    with pytest.raises(ObjectTooLarge):
        store.read(url, max_bytes=4)
    assert [p for p in tmp_path.iterdir() if p.name != "store"] == []


def test_a_missing_object_cannot_be_downloaded(
    store: ObjectStore, url: ObjectUrl, tmp_path: Path
) -> None:
    with pytest.raises(ObjectMissing) as caught:
        store.download(url, tmp_path / "target", max_bytes=10)
    assert not caught.value.transient
    assert str(url) in caught.value.message


def test_a_missing_bucket_is_an_error_for_everything(store: ObjectStore, tmp_path: Path) -> None:
    url = ObjectUrl("no-such-bucket", "key")
    (tmp_path / "file").write_bytes(b"1")
    calls = [
        lambda: store.read(url),
        lambda: put(store, url, b"1"),
        lambda: put(store, url, b"1", only_if_absent=True),
        lambda: store.upload(url, tmp_path / "file", content_type="text/plain"),
        lambda: store.download(url, tmp_path / "target", max_bytes=1),
        lambda: list(store.list(url)),
    ]
    for call in calls:
        with pytest.raises(BucketMissing) as caught:
            call()
        assert not caught.value.transient
    found = store.probe(ObjectUrl("no-such-bucket", "jobs/"))
    assert found == StoreAbilities(
        writable=False,
        conditional_put=False,
        reason="The bucket no-such-bucket does not exist.",
    )


def test_a_copy_is_independent_of_its_source(store: ObjectStore, url: ObjectUrl) -> None:
    target = ObjectUrl(url.bucket, "copies/one")
    put(store, url, b"first")
    store.copy(url, target)
    store.delete(url)
    stored = store.read(target)
    assert stored is not None
    assert stored.body == b"first"
    with pytest.raises(ObjectMissing):
        store.copy(url, target)


def test_deleting_twice_is_no_error(store: ObjectStore, url: ObjectUrl) -> None:
    put(store, url, b"1")
    store.delete(url)
    store.delete(url)
    assert store.read(url) is None


def test_a_listing_has_the_prefix_alone_in_order(store: ObjectStore, bucket: str) -> None:
    for key in ("jobs/b/2", "jobs/b/1", "jobs/ba/1", "models/1"):
        put(store, ObjectUrl(bucket, key), b"1")
    assert [u.key for u in store.list(ObjectUrl(bucket, "jobs/b/"))] == ["jobs/b/1", "jobs/b/2"]
    assert [u.key for u in store.list(ObjectUrl(bucket, "jobs/b"))][-1] == "jobs/ba/1"
    assert list(store.list(ObjectUrl(bucket, "none"))) == []


def test_the_probe_finds_conditional_writes_and_leaves_nothing(
    store: ObjectStore, bucket: str
) -> None:
    prefix = ObjectUrl(bucket, "jobs/")
    assert store.probe(prefix) == StoreAbilities(writable=True, conditional_put=True)
    assert list(store.list(ObjectUrl(bucket, ""))) == []


def test_a_local_store_keeps_to_its_folder(tmp_path: Path) -> None:
    local = LocalStore(tmp_path / "store")
    for key in ("../../outside", "a/../../outside", "/etc/passwd", "a//b", ""):
        with pytest.raises(StorageError):
            put(local, ObjectUrl("bucket", key), b"1")
    for bucket in ("..", ".incoming", "a/../.."):
        with pytest.raises(BucketMissing):
            put(local, ObjectUrl(bucket, "outside"), b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]
