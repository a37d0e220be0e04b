"""Which of our errors is an error of boto3? A table."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from worker.storage.store import (
    AccessDenied,
    BucketMissing,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StoreUnavailable,
)

#: Codes of S3 that pass by themselves, whatever HTTP status they come with.
_TRANSIENT_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
    }
)

#: Statuses from 500 on that the same request would bring again. All others pass, those of whatever
#: stands before the store too.
_FOR_GOOD = frozenset({501, 505})

#: Codes that mean bad credentials though their HTTP status is 400.
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "InvalidToken", "InvalidAccessKeyId"})


def storage_error(error: ClientError | BotoCoreError, what: str) -> StorageError:
    """The `StorageError` for what boto3 raised about the object(s) `what`.

    The error's own text is left out: it may hold the endpoint, and `Message` may be None.
    """
    if isinstance(error, ClientError):
        return _of_answer(error, what)
    if isinstance(error, CredentialRetrievalError):
        return StoreUnavailable(f"Whoever gives the credentials for {what} did not answer.")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return AccessDenied(
            f"There are no credentials for {what}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, ParamValidationError):
        return StorageError(f"{what} is not an address that the store takes.")
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError):
        return StoreUnavailable(f"The store could not be reached for {what}.")
    return StorageError(f"The store's client failed for {what} ({type(error).__name__}).")


def _of_answer(error: ClientError, what: str) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code") or "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code == "NoSuchBucket":
        return BucketMissing(f"The bucket of {what} does not exist.")
    passes = status in (408, 409, 425, 429) or (status >= 500 and status not in _FOR_GOOD)
    if code in _TRANSIENT_CODES or passes:
        return StoreUnavailable(f"The store answered {status} {code} for {what}; try again later.")
    if status == 404:
        return ObjectMissing(f"{what} does not exist.")
    if status == 412:
        return PreconditionFailed(f"{what} is not as the conditional write demanded.")
    if status in (401, 403) or code in _CREDENTIAL_CODES:
        return AccessDenied(f"The store refused access to {what} ({status} {code}).")
    return StorageError(f"The store answered {status} {code} for {what}.")
