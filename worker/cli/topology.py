"""`lora-worker topology`: the broker's queues, as they should be and as they are."""

import json
from typing import Annotated, NoReturn

import typer

from worker.broker.connection import BrokerAddress
from worker.broker.examination import BrokerNotReached, BrokerRefuses, apply, examine
from worker.cli.outcome import EXIT_UNAVAILABLE, complain, settings_or_exit
from worker.jobs.from_settings import topology_of
from worker.observability.logging import configure_logging

topology_app = typer.Typer(help="The broker's queues.", no_args_is_help=True)


@topology_app.command("show")
def topology_show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """One line a queue: state, messages, consumers, name, arguments that the settings ask for."""
    settings = settings_or_exit()
    configure_logging("ERROR", "console", settings.secret_values)
    try:
        found = examine(BrokerAddress(settings.broker_url), topology_of(settings))
    except (BrokerRefuses, BrokerNotReached, ValueError) as error:
        _no_broker(error)
    if as_json:
        queues = [
            {**vars(queue), "wanted": dict(queue.wanted) if queue.wanted else None}
            for queue in found.queues
        ]
        typer.echo(json.dumps({"version": found.version, "queues": queues}, indent=2))
        return
    typer.echo(f"{found.product} {found.version}")
    for queue in found.queues:
        wanted = " ".join(f"{name}={value}" for name, value in (queue.wanted or {}).items())
        counts = f"{queue.messages:>7} messages  {queue.consumers:>4} consumers"
        typer.echo(f"{queue.state:<10} {counts}  {queue.name}  {wanted}".rstrip())


@topology_app.command("apply")
def topology_apply() -> None:
    """Declare what is missing; what exists with other arguments is left as it is and named."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    address, topology = BrokerAddress(settings.broker_url), topology_of(settings)
    try:
        apply(address, topology)
        found = examine(address, topology)
    except (BrokerRefuses, BrokerNotReached, ValueError) as error:
        _no_broker(error)
    if other := [queue.name for queue in found.queues if queue.state != "as wanted"]:
        complain(f"not as the settings ask for: {', '.join(other)}", EXIT_UNAVAILABLE)
    typer.echo(f"all {len(found.queues)} queues are as the settings ask for")


def _no_broker(error: Exception) -> NoReturn:
    complain(f"the broker cannot be used: {error}", EXIT_UNAVAILABLE)
