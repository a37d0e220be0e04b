"""A running compose file, seen from the machine that it runs on."""

import functools
import json
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.checker import Arrival
from worker.storage.s3_client import connect

ROOT = Path(__file__).parents[2]

#: As the compose file has them.
RESULTS_BUCKET, MONITOR = "stylelicense-models", ("monitor", "demo-monitor")
SECRETS = ("demo-token", "demo-secret", "demo-worker")

#: Ports are taken as they are free.
FREE_PORTS = dict.fromkeys(("RABBITMQ_UI_PORT", "S3_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"), "")


@dataclass(frozen=True)
class Stack:
    """`docker compose` with the profile `demo` and the short times of `quick.yml`."""

    project: str
    jobs: int

    def compose(self, *arguments: str) -> str:
        """What `docker compose` prints. Raises `CalledProcessError`."""
        command = ["docker", "compose", "-p", self.project, "--profile", "demo"]
        command += ["-f", "docker-compose.yml", "-f", "tests/compose/quick.yml", *arguments]
        environment = {**os.environ, **FREE_PORTS, "JOBS": str(self.jobs)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def workers(self) -> list[str]:
        """Ids of the workers' containers."""
        return self.compose("ps", "-aq", "worker").split()

    def published(self) -> list[str]:
        """Ids of the jobs that the demo's backend has sent."""
        lines = self.compose("logs", "--no-log-prefix", "setup").splitlines()
        return [line.rpartition(" ")[2] for line in lines if line.startswith("published job ")]

    def worker_log(self) -> str:
        """What all workers have logged, those that were killed too."""
        return self.compose("logs", "--no-log-prefix", "worker")

    # --- the store

    def store(self) -> Any:
        """A client of the S3 server."""
        return connect(
            endpoint_url=f"http://{self._address('s3', 8333)}",
            access_key_id="demo",
            secret_access_key="demo-secret",
        )

    def objects(self, suffix: str = "") -> dict[str, bytes]:
        """All results whose key ends so."""
        client, found = self.store(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=RESULTS_BUCKET):
            for item in page.get("Contents", []):
                if item["Key"].endswith(suffix):
                    answer = client.get_object(Bucket=RESULTS_BUCKET, Key=item["Key"])
                    found[item["Key"]] = answer["Body"].read()
        return found

    def leases(self) -> dict[str, dict[str, Any]]:
        """The lease of each job that has one, by the job's id."""
        return {
            key.split("/")[1]: json.loads(body) for key, body in self.objects("/lease.json").items()
        }

    # --- broker, receiver, metrics

    def queues(self) -> dict[str, int]:
        """Messages of each queue, unacknowledged ones too, by the management API."""
        answer = self._get("rabbitmq", 15672, "/api/queues/%2F", MONITOR)
        return {queue["name"]: queue.get("messages", 0) for queue in answer}

    def arrivals(self) -> list[Arrival]:
        """The receiver's journal."""
        rows = self.compose("exec", "-T", "receiver", "cat", "/work/journal.jsonl").splitlines()
        return [_arrival(json.loads(row)) for row in rows]

    def prometheus(self, query: str) -> float | None:
        """First value of a query; None without one."""
        path = f"/api/v1/query?query={urllib.parse.quote(query)}"
        found = self._get("prometheus", 9090, path)["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    @functools.cache  # noqa: B019 - there are one or two stacks
    def _address(self, service: str, port: int) -> str:
        return self.compose("port", service, str(port)).strip()

    def _get(self, service: str, port: int, path: str, login: Sequence[str] = ()) -> Any:
        url = f"http://{self._address(service, port)}"
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        if login:
            passwords.add_password(None, url, *login, is_authenticated=True)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        with opener.open(url + path, timeout=60) as answer:
            return json.loads(answer.read())


def docker(*arguments: str) -> None:
    """Run `docker`. Raises `CalledProcessError`."""
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)


def _arrival(row: dict[str, Any]) -> Arrival:
    return Arrival(
        job_id=row["json"]["job_id"],
        event=row["path"].rpartition("/")[2],
        key=row["headers"]["idempotency-key"],
        body=row["body"].encode(),
        status=row["status"],
    )
