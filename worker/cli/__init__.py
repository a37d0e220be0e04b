"""The verbs of `lora-worker`.

Exit status: 0 done, 1 not reproduced, 64 bad settings, 65 bad job, 69 no service, 70 job failed,
130 interrupted.
"""

import typer

from worker.cli.operator import cancel, dead_app, events_app, jobs_app
from worker.cli.reproduce import reproduce
from worker.cli.verbs import demo, run, schema, submit, train, validate, version

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (run, train, reproduce, submit, validate, cancel, schema, demo, version):
    app.command()(verb)
app.add_typer(jobs_app, name="jobs")
app.add_typer(dead_app, name="dead")
app.add_typer(events_app, name="events")


def main() -> None:
    """The console script."""
    app()
