"""The verbs of whoever is on call: cancel a job, look at one, deal with what was given up."""

import json
from collections.abc import Callable
from typing import Annotated

import typer
from pydantic import ValidationError

from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress
from worker.broker.inspection import QueuedMessage, look_at, move, purge
from worker.broker.publisher import Publisher
from worker.cli.outcome import (
    EXIT_BAD_JOB,
    EXIT_UNAVAILABLE,
    complain,
    record_of,
    row,
    settings_or_exit,
)
from worker.jobs.control import announce_cancel
from worker.jobs.decide import describe
from worker.jobs.from_settings import topology_of
from worker.jobs.outbox import OutboxMessage
from worker.jobs.replay import fresh_event, fresh_job, job_id_of
from worker.jobs.runner import look
from worker.observability.logging import configure_logging
from worker.storage.store import StorageError

#: What a dead letter says of itself, beside its id.
_TOLD = ("code", "failed-at", "message")

jobs_app = typer.Typer(help="Look at jobs.", no_args_is_help=True)
dead_app = typer.Typer(help="Jobs that nobody will try again.", no_args_is_help=True)
events_app = typer.Typer(help="Terminal webhooks that were given up.", no_args_is_help=True)

_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def cancel(job_id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """End a job, running or queued: nothing is uploaded, its sender hears CANCELED."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    record = record_of(job_id, settings)
    try:
        if (result := record.result()) is not None:
            complain(f"the job has ended already: {result.outcome}", EXIT_BAD_JOB)
        record.request_cancel()
    except StorageError as error:
        complain(f"the store cannot be used: {error}", EXIT_UNAVAILABLE)
    publisher = Publisher(BrokerAddress(settings.broker_url), name="cancel")
    try:
        heard = announce_cancel(publisher, topology_of(settings), job_id)
    finally:
        publisher.close()
    when = "at its next step" if heard else f"within {settings.lease_renew_seconds:g} s"
    typer.echo(f"canceled: a running job stops {when}; a queued one when it is delivered")


@jobs_app.command("show")
def jobs_show(job_id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Say where a job stands, as one JSON object."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    record = record_of(job_id, settings)
    try:
        found, _ = look(record)
        standing = describe(found, lease_term_seconds=settings.lease_term_seconds)
    except StorageError as error:
        complain(f"the store cannot be used: {error}", EXIT_UNAVAILABLE)
    typer.echo(json.dumps({"job_id": job_id, **standing}, indent=2))
    if standing["state"] == "unknown":
        raise typer.Exit(EXIT_BAD_JOB)


@dead_app.command("list")
def dead_list() -> None:
    """One line a dead job: id, code, when, why."""

    def line(message: QueuedMessage) -> str:
        told = (message.headers.get(f"x-lora-{name}", "") for name in _TOLD)
        return row(job_id_of(message), *told)

    for text in _told("dead", line):
        typer.echo(text)


@dead_app.command("show")
def dead_show(job_id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """A dead job's headers and its message as it was published."""

    def shown(message: QueuedMessage) -> str | None:
        if job_id_of(message) != job_id:
            return None
        headers = {k: v for k, v in message.headers.items() if k.startswith("x-lora-")}
        body = message.body.decode("utf-8", "replace")
        return json.dumps({"headers": headers, "body": body}, indent=2)

    told = _told("dead", shown)
    if not told:
        complain(f"no dead job has the id {job_id}", EXIT_BAD_JOB)
    typer.echo(told[0])


@dead_app.command("replay")
def dead_replay(
    job_id: Annotated[str | None, typer.Argument(help="The job's id; all of them if none.")] = None,
) -> None:
    """Publish dead jobs anew, each under a new id, and take them out of the quarantine."""

    def chosen(message: QueuedMessage) -> QueuedMessage | None:
        if job_id not in (None, job_id_of(message)):
            return None
        fresh = fresh_job(message)
        if fresh is None:
            typer.echo(row(f"{job_id_of(message)}: stays, its body is not a job"), err=True)
        else:
            typer.echo(row(f"{job_id_of(message)} is published as {fresh.message_id}"))
        return fresh

    _moved("dead", "main", chosen)


@dead_app.command("purge")
def dead_purge(yes: _Yes = False) -> None:
    """Throw all dead jobs away."""
    _purged("dead", yes)


@events_app.command("list")
def events_list() -> None:
    """One line a terminal webhook that was given up: job, event, receiver, why."""

    def line(message: QueuedMessage) -> str:
        try:
            event = OutboxMessage.model_validate_json(message.body)
        except ValidationError:
            return row(message.message_id, "not readable")
        reason = message.headers.get("x-lora-reason", "")
        return row(event.job_id, event.event, event.base, reason)

    for text in _told("events_dead", line):
        typer.echo(text)


@events_app.command("replay")
def events_replay(
    job_id: Annotated[str | None, typer.Argument(help="The job's id; all of them if none.")] = None,
) -> None:
    """Send given-up webhooks again, as they were, with all their tries before them."""
    settings = settings_or_exit()

    def chosen(message: QueuedMessage) -> QueuedMessage | None:
        try:
            event = OutboxMessage.model_validate_json(message.body)
        except ValidationError:
            typer.echo(row(f"{message.message_id}: stays, it is not readable"), err=True)
            return None
        if job_id not in (None, event.job_id):
            return None
        typer.echo(row(f"{event.job_id}: {event.event} goes to {event.base} again"))
        return fresh_event(message, record_of(event.job_id, settings))

    _moved("events_dead", "events", chosen)


@events_app.command("purge")
def events_purge(yes: _Yes = False) -> None:
    """Throw all given-up webhooks away."""
    _purged("events_dead", yes)


def _told(name: str, tell: Callable[[QueuedMessage], str | None]) -> list[str]:
    """What `tell` makes of the messages of one queue of the topology, left where they are.

    To be printed afterwards: whoever pages through it would keep the broker's connection waiting.
    """
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    queue = getattr(topology_of(settings), name)
    try:
        told = look_at(BrokerAddress(settings.broker_url), queue, tell)
    except PublishFailed as error:
        complain(str(error), EXIT_UNAVAILABLE)
    return [text for text in told if text is not None]


def _moved(
    source: str, target: str, chosen: Callable[[QueuedMessage], QueuedMessage | None]
) -> None:
    """Move what `chosen` makes of each message between two queues of the topology."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    topology = topology_of(settings)
    try:
        count = move(
            BrokerAddress(settings.broker_url),
            getattr(topology, source),
            getattr(topology, target),
            chosen,
        )
    except (PublishFailed, StorageError) as error:
        complain(str(error), EXIT_UNAVAILABLE)
    typer.echo(f"{count} moved")


def _purged(name: str, yes: bool) -> None:
    """Throw away what lies in one queue of the topology."""
    settings = settings_or_exit()
    queue = getattr(topology_of(settings), name)
    if not yes:
        typer.confirm(f"Throw away every message of {queue}?", abort=True)
    try:
        typer.echo(f"{purge(BrokerAddress(settings.broker_url), queue)} thrown away")
    except PublishFailed as error:
        complain(str(error), EXIT_UNAVAILABLE)
