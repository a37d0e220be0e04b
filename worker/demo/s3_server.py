"""An S3 server of our own: moto's, in a process of its own, on a free loopback port."""

import re
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

from worker.storage.s3 import S3Store
from worker.storage.s3_client import connect

#: The server takes any credentials; these are what the demo and the tests send.
ACCESS_KEY_ID = "demo"
SECRET_ACCESS_KEY = "demo-secret"  # noqa: S105 - opens nothing

#: Longest time the server may take to listen, seconds.
START_SECONDS = 60.0

#: Time it has to end when asked to, seconds.
STOP_SECONDS = 5.0


class S3Server:
    """A context manager: the server runs inside of the `with` block, and its content ends with it.

    Attributes:
        endpoint_url: `http://127.0.0.1:port`.
    """

    endpoint_url: str

    def __enter__(self) -> "S3Server":
        self._log = tempfile.TemporaryFile()
        # Port 0: the system picks a free one, and the server's first lines say which.
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self.endpoint_url = self._wait_for_address()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a worker (or the AWS SDK) at it."""
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client that talks to it."""
        return connect(**self._arguments)

    def store(self) -> S3Store:
        """The worker's store on it."""
        return S3Store(**self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint_url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
        }

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while True:
            said = self._said()
            if found := re.search(r"http://127\.0\.0\.1:\d+", said):
                return found.group()
            if self._process.poll() is not None:
                raise RuntimeError(f"the S3 server ended while starting: {said[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no S3 server after {START_SECONDS:g} s: {said[-2000:]}")
            time.sleep(0.05)

    def _said(self) -> str:
        # Opened anew: reading must not move the offset that the server writes at.
        with open(f"/proc/self/fd/{self._log.fileno()}", "rb") as file:
            return file.read().decode(errors="replace")
