"""How does a verb begin and end? Settings or a complaint, and the exit statuses for scripts."""

import re
from typing import NoReturn

import typer

from worker.contract.job import JOB_ID_PATTERN
from worker.contract.text import printable
from worker.jobs.from_settings import s3_store
from worker.jobs.record import JobRecord
from worker.settings import EXIT_SETTINGS, Settings, SettingsError, load_settings

#: Longest field of a line, characters.
_FIELD = 2000

#: The job, its data or its parameters are not valid (sysexits' EX_DATAERR).
EXIT_BAD_JOB = 65

#: A broker, store or receiver cannot be reached (EX_UNAVAILABLE).
EXIT_UNAVAILABLE = 69

#: The job failed (EX_SOFTWARE).
EXIT_JOB_FAILED = 70

#: Ended by the user before it was done; a checkpoint is left.
EXIT_INTERRUPTED = 130


def settings_or_exit() -> Settings:
    """The settings, or the end of the process with a sentence for each that is wrong."""
    try:
        return load_settings()
    except SettingsError as error:
        refuse_settings(error)


def refuse_settings(error: SettingsError) -> NoReturn:
    """End with 64."""
    for problem in error.problems:
        typer.echo(f"lora-worker: {problem}", err=True)
    raise typer.Exit(EXIT_SETTINGS)


def complain(sentence: str, status: int) -> NoReturn:
    """End with a sentence on stderr and an exit status."""
    typer.echo(f"lora-worker: {sentence}", err=True)
    raise typer.Exit(status)


def row(*fields: object) -> str:
    """One line, a tab between its fields; what strangers wrote commands no terminal."""
    return "\t".join(printable(str(field), _FIELD) for field in fields)


def record_of(job_id: str, settings: Settings) -> JobRecord:
    """A job's objects in the store, or the end of the process if that is no job id."""
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        complain(f"{job_id!r} is not a job id", EXIT_BAD_JOB)
    return JobRecord(s3_store(settings), settings.s3_bucket, job_id)
