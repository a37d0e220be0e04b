"""`lora-worker health` and `status`: ask the worker of this machine how it is."""

import http.client
import json
import time
from typing import Annotated, Any

import typer

from worker.cli.outcome import EXIT_UNAVAILABLE, complain, settings_or_exit
from worker.settings import EXIT_SETTINGS, Settings

#: How long the worker may take to answer, seconds.
_SECONDS = 5.0

#: Addresses to listen on that are none to connect to.
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound

_Ready = Annotated[bool, typer.Option("--ready", help="Ask whether it takes jobs.")]
_Json = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]


def health(ready: _Ready = False) -> None:
    """End with 0 if this machine's worker is alive, with 69 if not; for a container's probe."""
    code, answer = _ask(settings_or_exit(), "/readyz" if ready else "/livez")
    if code != http.client.OK:
        complain("; ".join(answer["reasons"]), EXIT_UNAVAILABLE)
    typer.echo("ready" if ready else "alive")


def status(as_json: _Json = False) -> None:
    """What the worker on this machine does now, and how its last jobs ended."""
    _, answer = _ask(settings_or_exit(), "/status")
    typer.echo(json.dumps(answer, indent=2) if as_json else "\n".join(_lines(answer)))


def ask(settings: Settings, path: str) -> tuple[int, Any]:
    """Status and JSON of a page of this machine's worker. Raises `OSError` if none answers."""
    address = _ANYWHERE.get(settings.http_address, settings.http_address)
    connection = http.client.HTTPConnection(address, settings.http_port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        place = f"{address}:{settings.http_port}"
        raise OSError(f"no worker answers on {place}: {type(error).__name__}") from error
    finally:
        connection.close()


def _ask(settings: Settings, path: str) -> tuple[int, Any]:
    if not settings.http_port:
        complain("HTTP_PORT is not set: the worker answers nobody", EXIT_SETTINGS)
    try:
        return ask(settings, path)
    except OSError as error:
        complain(str(error), EXIT_UNAVAILABLE)


def _lines(answer: dict[str, Any]) -> list[str]:
    worker, now = answer["worker"], answer["now"]
    state = "stopping" if answer["draining"] else "ready" if answer["ready"] else "not ready"
    lines = [
        f"{worker['owner']}  version {worker['version']}  {state}",
        *(f"  {reason}" for reason in answer["reasons"]),
    ]
    for job in answer["jobs"]:
        training = job["training"]
        figures = ""
        if training:
            figures = (
                f"  step {training['step']} of {training['total_steps']}, loss "
                f"{training['loss']:.4g}, {training['estimated_seconds']:.0f} s left"
            )
        lines.append(f"now   {job['job_id']}  style {job['style_id']}  {job['stage']}{figures}")
    for job in answer["recent"]:
        ago = time.strftime("%H:%M:%S", time.localtime(job["ended_at"]))
        why = "  ".join(filter(None, [job["code"], job["message"]]))
        lines.append(f"{ago}  {job['job_id']}  style {job['style_id']}  {job['outcome']}  {why}")
    if not answer["jobs"] and not answer["recent"]:
        lines.append(f"no job yet; up for {now - worker['started_at']:.0f} s")
    return [line.rstrip() for line in lines]
