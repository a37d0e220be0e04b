"""`lora-worker deletion-cost`: which pods does Kubernetes delete first when a pool shrinks?

Those whose annotation `controller.kubernetes.io/pod-deletion-cost` is lowest. This runs beside a
worker, in a container of its own: it alone has a token of the cluster, and the worker has none.
"""

import http.client
import json
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import typer

from worker.cli.health import ask
from worker.cli.outcome import complain, settings_or_exit
from worker.observability.logging import configure_logging
from worker.settings import EXIT_SETTINGS, Settings

log = structlog.get_logger()

#: What a running job is worth; a worker without one costs nothing.
COST_OF_A_JOB = 100

#: Where a pod finds its token, its namespace and the certificate of the cluster.
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

#: How long the cluster may take to answer, seconds.
_SECONDS = 10.0


@dataclass(frozen=True)
class Pod:
    """The pod that this runs in, as the cluster's API knows it.

    Attributes:
        host, port: of the API.
        account: folder of the pod's token.
    """

    name: str
    host: str
    port: int
    account: Path = _ACCOUNT

    def annotate(self, cost: int) -> None:
        """Write the cost into the pod's annotation. Raises `OSError`, also if it is refused."""
        namespace = (self.account / "namespace").read_text().strip()
        trust = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=_SECONDS, context=trust
        )
        annotations = {"controller.kubernetes.io/pod-deletion-cost": str(cost)}
        try:
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{namespace}/pods/{self.name}",
                json.dumps({"metadata": {"annotations": annotations}}),
                {
                    # Read anew each time: it is replaced every hour.
                    "Authorization": f"Bearer {(self.account / 'token').read_text().strip()}",
                    "Content-Type": "application/merge-patch+json",
                },
            )
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise OSError(f"the cluster answered {answer.status}")
        except http.client.HTTPException as error:
            raise OSError(type(error).__name__) from error
        finally:
            connection.close()


def deletion_cost(
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time between two looks.")
    ] = 10.0,
) -> None:
    """Keep a pod's deletion cost: 0 while its worker idles, 100 a running job (Kubernetes)."""
    settings = settings_or_exit()
    if not settings.http_port:
        complain("HTTP_PORT is not set: the worker answers nobody", EXIT_SETTINGS)
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    pod = _pod()
    written: int | None = None
    while True:
        written = keep(pod, settings, written)
        time.sleep(every)


def keep(pod: Pod, settings: Settings, written: int | None) -> int | None:
    """One look. Returns the cost that the pod has now; None if nothing was written yet."""
    try:
        _, status = ask(settings, "/status")
    except OSError:
        return written  # it starts or ends: what was said last still holds
    cost = COST_OF_A_JOB * len(status["jobs"])
    if cost == written:
        return written
    try:
        pod.annotate(cost)
    except OSError as error:
        log.warning("deletion_cost_not_written", reason=str(error))
        return written
    log.info("deletion_cost_written", cost=cost)
    return cost


def _pod() -> Pod:
    names = ("POD_NAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        complain(f"{', '.join(missing)}: not set; this runs in a pod of Kubernetes", EXIT_SETTINGS)
    name, host, port = (os.environ[name] for name in names)
    return Pod(name, host, int(port))
