"""How is a store spoken to? The boto3 client: its region, time-outs, tries, way of addressing."""

import os
from typing import Any
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config

#: Region that requests are signed for where nothing names one; only Amazon's servers care.
DEFAULT_REGION = "us-east-1"

#: Longest time for one connection to be accepted, seconds.
CONNECT_SECONDS = 5.0

#: Requests that may run at a time; more wait for a connection.
CONNECTIONS = 32

#: Tries of one request, the first included; between them botocore waits, longer each time.
ATTEMPTS = 4


def connect(
    *,
    endpoint_url: str | None = None,
    timeout_seconds: float = 30.0,
    attempts: int = ATTEMPTS,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
) -> Any:
    """A boto3 client. No request is made yet; it may be used from many threads.

    Args:
        endpoint_url: any S3-compatible server; Amazon's if None.
        timeout_seconds: longest silence of the server in one try.
        attempts: tries of one request.
        access_key_id: with `secret_access_key`; from the AWS SDK's own names if None.
        secret_access_key: as above.
    """
    session = boto3.session.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or DEFAULT_REGION
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    config = Config(
        signature_version="s3v4",
        connect_timeout=min(CONNECT_SECONDS, timeout_seconds),
        read_timeout=timeout_seconds,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        # Checksums that older servers do not know are sent only where `upload` asks for one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if host in ("127.0.0.1", "::1", "localhost") else None,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        config=config,
    )
