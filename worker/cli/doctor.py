"""`lora-worker doctor`: everything that jobs need, looked at once, a line each."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.outcome import EXIT_UNAVAILABLE, refuse_settings, settings_or_exit
from worker.jobs.finding import Finding
from worker.jobs.fitness import examine_all
from worker.observability.logging import configure_logging
from worker.settings import SettingsError

#: What stands at the beginning of a line.
_MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Look at machine, GPUs, model files, broker, store and receivers; 69 if anything failed."""
    settings = settings_or_exit()
    configure_logging("ERROR", "console", settings.secret_values)
    found: list[Finding] = []
    try:
        for finding in examine_all(settings):
            found.append(finding)
            if not as_json:
                mark = _MARKS[finding.verdict]
                typer.echo(f"{mark} {finding.check:<9} {finding.sentence}")
    except SettingsError as error:
        refuse_settings(error)
    failed = any(finding.verdict == "failed" for finding in found)
    if as_json:
        findings = [asdict(finding) for finding in found]
        typer.echo(json.dumps({"ok": not failed, "findings": findings}, indent=2))
    if failed:
        raise typer.Exit(EXIT_UNAVAILABLE)
