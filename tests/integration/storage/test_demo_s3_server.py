"""The S3 server that the demo and the tests run."""

import psutil

from worker.demo.s3_server import S3Server


def test_the_server_ends_with_its_block() -> None:
    with S3Server() as server:
        client = server.client()
        client.create_bucket(Bucket="bucket")
        assert client.list_buckets()["Buckets"][0]["Name"] == "bucket"
        assert server.environment["S3_ENDPOINT_URL"] == server.endpoint_url
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)
