"""The verbs of `lora-worker`.

Exit status: 0 done, 1 not reproduced, 64 bad settings, 65 bad job, 69 no service, 70 job failed,
130 interrupted.
"""

import typer

from worker.cli.deletion_cost import deletion_cost
from worker.cli.doctor import doctor
from worker.cli.health import health, status
from worker.cli.models import models_app
from worker.cli.operator import cancel, dead_app, events_app, jobs_app
from worker.cli.reproduce import reproduce
from worker.cli.topology import topology_app
from worker.cli.verbs import demo, run, schema, submit, train, validate, version

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    *(run, train, reproduce, submit, validate, cancel, schema, demo, version),
    *(doctor, health, status, deletion_cost),
):
    app.command()(verb)
app.add_typer(jobs_app, name="jobs")
app.add_typer(dead_app, name="dead")
app.add_typer(events_app, name="events")
app.add_typer(topology_app, name="topology")
app.add_typer(models_app, name="models")


def main() -> None:
    """The console script."""
    app()
