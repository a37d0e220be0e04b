"""What an error of boto3 means, as a table."""

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
)

from worker.storage.s3_errors import storage_error
from worker.storage.store import (
    AccessDenied,
    BucketMissing,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StoreUnavailable,
)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchKey", 404, ObjectMissing),
        ("404", 404, ObjectMissing),
        ("NoSuchBucket", 404, BucketMissing),
        ("PreconditionFailed", 412, PreconditionFailed),
        ("412", 412, PreconditionFailed),
        ("ConditionalRequestConflict", 409, StoreUnavailable),
        ("AccessDenied", 403, AccessDenied),
        ("ExpiredToken", 400, AccessDenied),
        ("RequestTimeTooSkewed", 403, StoreUnavailable),
        ("RequestTimeout", 400, StoreUnavailable),
        ("SlowDown", 503, StoreUnavailable),
        (None, 500, StoreUnavailable),
        (None, 507, StoreUnavailable),
        (None, 522, StoreUnavailable),
        ("NotImplemented", 501, StorageError),
        (None, 505, StorageError),
        ("EntityTooLarge", 400, StorageError),
        (None, None, StorageError),
    ],
)
def test_the_kind_of_an_answer(
    code: str | None, status: int | None, kind: type[StorageError]
) -> None:
    response = {
        "Error": {"Code": code, "Message": None},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = storage_error(ClientError(response, "PutObject"), "s3://bucket/key")
    assert type(error) is kind
    assert error.transient is (kind is StoreUnavailable)
    assert error.message.endswith(".")
    assert "None" not in error.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EndpointConnectionError(endpoint_url="http://store.internal"), StoreUnavailable),
        (ConnectTimeoutError(endpoint_url="http://store.internal"), StoreUnavailable),
        (ReadTimeoutError(endpoint_url="http://store.internal"), StoreUnavailable),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnavailable),
        (NoCredentialsError(), AccessDenied),
        (CredentialRetrievalError(provider="p", error_msg="at store.internal"), StoreUnavailable),
    ],
)
def test_the_kind_of_a_failure_without_an_answer(
    error: Exception, kind: type[StorageError]
) -> None:
    found = storage_error(error, "s3://bucket/key")  # type: ignore[arg-type]
    assert type(found) is kind
    assert "store.internal" not in found.message
