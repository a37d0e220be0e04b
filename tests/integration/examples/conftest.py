"""The two example backends as servers of their own, as somebody who copies them runs them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import requests

from tests.live_worker import TOKEN, Site, eventually
from worker.demo.rabbitmq_node import RabbitMQNode

EXAMPLES = Path(__file__).parents[3] / "examples"

#: The secret that the workers sign with, and the one that they signed with before.
SECRET, FORMER_SECRET = "whsec_" + "A" * 32, "whsec_" + "B" * 32


@dataclass(frozen=True)
class Backend:
    """A running backend."""

    url: str
    broker_url: str

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=10)

    def post(self, path: str, json: object = None) -> requests.Response:
        return requests.post(self.url + path, json=json, timeout=10)

    def job(self, job_id: str) -> dict:
        return self.get(f"/jobs/{job_id}").json()


@contextmanager
def django(port: int, environment: dict[str, str], log: Path) -> Iterator[str]:
    folder = EXAMPLES / "django_receiver"
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v0"], cwd=folder, env=environment, check=True)
    command = [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"]
    with serving(command, folder, port, environment, log) as url:
        yield url


@contextmanager
def fastapi(port: int, environment: dict[str, str], log: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    folder = EXAMPLES / "fastapi_receiver"
    with serving(command, folder, port, environment, log) as url:
        yield url


@contextmanager
def serving(
    command: list[str], folder: Path, port: int, environment: dict[str, str], log: Path
) -> Iterator[str]:
    """A server's address once it answers."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"{url}/jobs/nobody", timeout=10).status_code == 404
        except requests.ConnectionError:
            return False

    try:
        eventually(answers, f"{command} answers")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module", params=[django, fastapi], ids=["django", "fastapi"])
def backend(
    request: pytest.FixtureRequest,
    private_rabbitmq_node: RabbitMQNode,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Backend]:
    """Each of the examples, once: to start a server takes longer than a test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vhost = f"backend-{port}"
    private_rabbitmq_node.ctl("add_vhost", vhost)
    private_rabbitmq_node.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    broker_url = private_rabbitmq_node.vhost_url(vhost)
    folder = tmp_path_factory.mktemp("backend")
    environment = {
        **os.environ,
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_SIGNING_SECRETS": f"{SECRET},{FORMER_SECRET}",
        "RABBITMQ_URL": broker_url,
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DATABASE": str(folder / "jobs.sqlite3"),
    }
    with request.param(port, environment, folder / "backend.log") as url:
        yield Backend(url, broker_url)


@pytest.fixture
def shared_site(backend: Backend, site: Site) -> Site:
    """A worker's surroundings, on the broker that the backend publishes to."""
    return replace(site, broker_url=backend.broker_url)
