"""The verbs of whoever trains: run a worker, train here, publish, validate."""

import json
import re
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from worker import __version__
from worker.cli.outcome import (
    EXIT_BAD_JOB,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_UNAVAILABLE,
    complain,
    record_of,
    refuse_settings,
    settings_or_exit,
)
from worker.client.publishing import LoraJobClient, PublishFailed
from worker.contract.asyncapi import asyncapi
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import InvalidJob, JobError
from worker.contract.job import ParsedMessage, parse_message
from worker.contract.openapi import openapi
from worker.contract.pipe import FinishedEvent
from worker.contract.schema import json_schema
from worker.jobs.fitness import refuse_to_start
from worker.jobs.from_settings import catalogue_of
from worker.jobs.job_folder import sweep
from worker.jobs.local_run import pictures_in, train_locally
from worker.jobs.record import Result
from worker.jobs.retirement import RunLimits
from worker.jobs.supervisor import Supervisor
from worker.observability.logging import configure_logging
from worker.observability.progress_bar import ProgressBar
from worker.settings import EXIT_SETTINGS, Settings, SettingsError
from worker.storage.store import StorageError

#: Time between two looks for a submitted job's result, seconds.
_WAIT_SECONDS = 1.0


class SchemaFormat(StrEnum):
    """How the contract is written down."""

    JSON_SCHEMA = "json-schema"
    ASYNCAPI = "asyncapi"
    OPENAPI = "openapi"


_DOCUMENTS = {
    SchemaFormat.JSON_SCHEMA: json_schema,
    SchemaFormat.ASYNCAPI: asyncapi,
    SchemaFormat.OPENAPI: openapi,
}

JobFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A job message as JSON.")
]


def run(
    max_jobs: Annotated[
        int | None, typer.Option(min=1, metavar="JOBS", help="End after so many jobs.")
    ] = None,
    exit_when_idle: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="End after so long without job and event."),
    ] = None,
) -> None:
    """Consume jobs until told to stop (SIGTERM drains, a second one ends at once)."""
    settings = settings_or_exit()
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    try:
        limits = RunLimits(max_jobs=max_jobs, idle_seconds=exit_when_idle)
        supervisor = Supervisor(settings, limits=limits)
        sweep(settings.work_dir)  # a disk that the dead have filled is no reason to refuse
        refuse_to_start(settings)
        supervisor.install_signal_handlers()
        status = supervisor.run()
    except SettingsError as error:
        refuse_settings(error)
    raise typer.Exit(status)


def train(
    job_file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="A job message as JSON.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of pictures (and .txt captions)."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter files.")] = Path("output"),
    trigger_word: Annotated[str | None, typer.Option(help="Word that calls the style.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A training parameter."),
    ] = None,
) -> None:
    """Train one job here: no broker, no S3; a second run of an interrupted job resumes."""
    if (job_file is None) == (images is None):
        complain("give either a job file or --images, not both", EXIT_SETTINGS)
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    if job_file is not None:
        body = job_file.read_bytes()
    else:
        assert images is not None  # noqa: S101 - the other of the two
        body = _body_of_folder(images, output, trigger_word, parameter or [])
    parsed = _parsed(body, settings)
    with ProgressBar() as bar:
        try:
            ended = train_locally(
                parsed.job,
                settings,
                _catalogue(settings),
                output,
                on_event=bar.on_event,
                should_stop=bar.should_stop,
            )
        except InvalidJob as error:
            complain(error.message, EXIT_BAD_JOB)
        except JobError as error:
            complain(f"{error.code}: {error.message}", EXIT_JOB_FAILED)
    if not isinstance(ended, FinishedEvent):
        complain("stopped; the same command resumes from the checkpoint", EXIT_INTERRUPTED)
    typer.echo(f"trained {ended.steps} steps, loss {ended.loss:.4f}")
    for file in ended.files:
        typer.echo(f"{output / file.name}  {file.bytes} bytes  sha256 {file.sha256}")


def submit(
    job_file: JobFile,
    wait: Annotated[bool, typer.Option(help="Wait for the job's result in the store.")] = False,
) -> None:
    """Publish a job as a backend does. Prints the job's id."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    client = LoraJobClient(
        settings.broker_url,
        queue=settings.rabbitmq_queue,
        max_images=settings.max_images,
        name="submit",
    )
    try:
        with client:
            job_id = client.publish(job_file.read_bytes())
    except InvalidJob as error:
        _refuse_job(error)
    except PublishFailed as error:
        complain(f"the job could not be published: {error}", EXIT_UNAVAILABLE)
    typer.echo(job_id)
    if wait:
        result = _wait_for(job_id, settings)
        typer.echo(result.event_body)
        if result.outcome != "completed":
            raise typer.Exit(EXIT_JOB_FAILED)


def validate(job_file: JobFile) -> None:
    """Say everything that is wrong with a job message, by field."""
    settings = settings_or_exit()
    parsed = _parsed(job_file.read_bytes(), settings)
    name = parsed.job.parameters.base_model
    if name is not None and name not in (known := _catalogue(settings)):
        complain(
            f"parameters.base_model: {name!r} is not in the catalogue; it has {', '.join(known)}",
            EXIT_BAD_JOB,
        )
    for field in parsed.ignored_fields:
        typer.echo(f"note: {field} is not a known field and is ignored")
    typer.echo(f"valid: job {parsed.job.job_id}, {len(parsed.job.images)} pictures")


def schema(
    form: Annotated[
        SchemaFormat, typer.Option("--format", help="Queue and events, or the webhooks alone.")
    ] = SchemaFormat.JSON_SCHEMA,
) -> None:
    """Print the contract: as JSON Schema, as an AsyncAPI or as an OpenAPI document."""
    typer.echo(json.dumps(_DOCUMENTS[form](), indent=2))


def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path(
        "demo-output"
    ),
) -> None:
    """Run the main job on this machine, with every real part made on the fly."""
    # torch and moto come with the demo; no other verb may pay for them.
    from worker.demo.run import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(output))


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _parsed(body: bytes, settings: Settings) -> ParsedMessage:
    try:
        return parse_message(body, max_images=settings.max_images)
    except InvalidJob as error:
        _refuse_job(error)


def _refuse_job(error: InvalidJob) -> NoReturn:
    for field, what in error.problems:
        typer.echo(f"{field}: {what}" if field else what, err=True)
    raise typer.Exit(EXIT_BAD_JOB)


def _catalogue(settings: Settings) -> dict[str, BaseModelEntry]:
    try:
        return catalogue_of(settings)
    except SettingsError as error:
        refuse_settings(error)


def _body_of_folder(
    images: Path, output: Path, trigger_word: str | None, parameters: list[str]
) -> bytes:
    """The message that a folder of pictures and options stand for."""
    message: dict[str, Any] = {
        "job_id": "local-" + re.sub(r"[^A-Za-z0-9._-]+", "-", output.resolve().name)[:100],
        "style_id": 1,
        "image_urls": [path.resolve().as_uri() for path in pictures_in(images)],
        "parameters": dict(_parameter(text) for text in parameters),
    }
    if trigger_word:
        message["trigger_word"] = trigger_word
    return json.dumps(message).encode()


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        complain(f"--parameter {text!r} must look like NAME=VALUE", EXIT_SETTINGS)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _wait_for(job_id: str, settings: Settings) -> Result:
    record = record_of(job_id, settings)
    while True:
        try:
            if result := record.result():
                return result
        except StorageError as error:
            if not error.transient:
                complain(f"the result cannot be looked up: {error}", EXIT_UNAVAILABLE)
        time.sleep(_WAIT_SECONDS)
