"""The verbs of `lora-worker`.

Exit status: 0 done, 64 bad settings, 65 bad job, 69 no service, 70 job failed, 130 interrupted.
"""

import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from worker import __version__
from worker.broker.confirms import PublishFailed
from worker.broker.connection import BrokerAddress
from worker.broker.inspection import QueuedMessage, look_at, move, purge
from worker.broker.publisher import Publisher
from worker.broker.submission import submit as publish
from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import InvalidJob, JobError
from worker.contract.job import JOB_ID_PATTERN, ParsedMessage, parse_message
from worker.contract.pipe import FinishedEvent
from worker.contract.schema import json_schema
from worker.jobs.assembly import catalogue_of, s3_store, topology_of
from worker.jobs.control import announce_cancel
from worker.jobs.decide import describe
from worker.jobs.local_run import pictures_in, train_locally
from worker.jobs.outbox import OutboxMessage
from worker.jobs.record import JobRecord, Result
from worker.jobs.replay import fresh_event, fresh_job, job_id_of
from worker.jobs.runner import look
from worker.jobs.supervisor import Supervisor
from worker.observability.logging import configure_logging
from worker.observability.progress_bar import ProgressBar
from worker.settings import EXIT_SETTINGS, Settings, SettingsError, load_settings
from worker.storage.store import StorageError

#: The job, its data or its parameters are not valid (sysexits' EX_DATAERR).
EXIT_BAD_JOB = 65

#: A broker, store or receiver cannot be reached (EX_UNAVAILABLE).
EXIT_UNAVAILABLE = 69

#: The job failed (EX_SOFTWARE).
EXIT_JOB_FAILED = 70

#: Ended by the user before it was done; a checkpoint is left.
EXIT_INTERRUPTED = 130

#: Time between two looks for a submitted job's result, seconds.
_WAIT_SECONDS = 1.0

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

jobs_app = typer.Typer(help="Look at jobs.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")

dead_app = typer.Typer(help="Jobs that nobody will try again.", no_args_is_help=True)
app.add_typer(dead_app, name="dead")
events_app = typer.Typer(help="Terminal webhooks that were given up.", no_args_is_help=True)
app.add_typer(events_app, name="events")

JobFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A job message as JSON.")
]


@app.command()
def run() -> None:
    """Consume jobs until told to stop (SIGTERM drains, a second one ends at once)."""
    settings = _settings()
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    try:
        supervisor = Supervisor(settings)
        supervisor.install_signal_handlers()
        status = supervisor.run()
    except SettingsError as error:
        _refuse_settings(error)
    raise typer.Exit(status)


@app.command()
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
        _complain("give either a job file or --images, not both", EXIT_SETTINGS)
    settings = _settings()
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
            _complain(error.message, EXIT_BAD_JOB)
        except JobError as error:
            _complain(f"{error.code}: {error.message}", EXIT_JOB_FAILED)
    if not isinstance(ended, FinishedEvent):
        _complain("stopped; the same command resumes from the checkpoint", EXIT_INTERRUPTED)
    typer.echo(f"trained {ended.steps} steps, loss {ended.loss:.4f}")
    for file in ended.files:
        typer.echo(f"{output / file.name}  {file.bytes} bytes  sha256 {file.sha256}")


@app.command()
def submit(
    job_file: JobFile,
    wait: Annotated[bool, typer.Option(help="Wait for the job's result in the store.")] = False,
) -> None:
    """Publish a job as a backend does. Prints the job's id."""
    settings = _settings()
    configure_logging("WARNING", "console", settings.secret_values)
    body = job_file.read_bytes()
    parsed = _parsed(body, settings)
    message_id = uuid.uuid4().hex if parsed.id_is_digest else None
    job_id = message_id or parsed.job.job_id
    try:
        publish(
            BrokerAddress(settings.broker_url), settings.rabbitmq_queue, body, message_id=message_id
        )
    except PublishFailed as error:
        _complain(f"the job could not be published: {error}", EXIT_UNAVAILABLE)
    typer.echo(job_id)
    if wait:
        result = _wait_for(job_id, settings)
        typer.echo(result.event_body)
        if result.outcome != "completed":
            raise typer.Exit(EXIT_JOB_FAILED)


@app.command()
def validate(job_file: JobFile) -> None:
    """Say everything that is wrong with a job message, by field."""
    settings = _settings()
    parsed = _parsed(job_file.read_bytes(), settings)
    name = parsed.job.parameters.base_model
    if name is not None and name not in (known := _catalogue(settings)):
        _complain(
            f"parameters.base_model: {name!r} is not in the catalogue; it has {', '.join(known)}",
            EXIT_BAD_JOB,
        )
    for field in parsed.ignored_fields:
        typer.echo(f"note: {field} is not a known field and is ignored")
    typer.echo(f"valid: job {parsed.job.job_id}, {len(parsed.job.images)} pictures")


@app.command()
def cancel(job_id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """End a job, running or queued: nothing is uploaded, its sender hears CANCELED."""
    settings = _settings()
    configure_logging("WARNING", "console", settings.secret_values)
    record = _record(job_id, settings)
    try:
        if (result := record.result()) is not None:
            _complain(f"the job has ended already: {result.outcome}", EXIT_BAD_JOB)
        record.request_cancel()
    except StorageError as error:
        _complain(f"the store cannot be used: {error}", EXIT_UNAVAILABLE)
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
    settings = _settings()
    configure_logging("WARNING", "console", settings.secret_values)
    record = _record(job_id, settings)
    try:
        found, _ = look(record)
        standing = describe(found, lease_term_seconds=settings.lease_term_seconds)
    except StorageError as error:
        _complain(f"the store cannot be used: {error}", EXIT_UNAVAILABLE)
    typer.echo(json.dumps({"job_id": job_id, **standing}, indent=2))
    if standing["state"] == "unknown":
        raise typer.Exit(EXIT_BAD_JOB)


@dead_app.command("list")
def dead_list() -> None:
    """One line a dead job: id, code, when, why."""
    for message in _queue("dead"):
        told = (message.headers.get(f"x-lora-{name}", "") for name in ("code", "failed-at"))
        reason = message.headers.get("x-lora-message", "")
        typer.echo("\t".join([job_id_of(message), *map(str, told), str(reason)]))


@dead_app.command("show")
def dead_show(job_id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """A dead job's headers and its message as it was published."""
    for message in _queue("dead"):
        if job_id_of(message) == job_id:
            headers = {k: v for k, v in message.headers.items() if k.startswith("x-lora-")}
            typer.echo(
                json.dumps(
                    {"headers": headers, "body": message.body.decode("utf-8", "replace")}, indent=2
                )
            )
            return
    _complain(f"no dead job has the id {job_id}", EXIT_BAD_JOB)


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
            typer.echo(f"{job_id_of(message)}: stays, its body is not a job", err=True)
        else:
            typer.echo(f"{job_id_of(message)} is published as {fresh.message_id}")
        return fresh

    _moved("dead", "main", chosen)


@dead_app.command("purge")
def dead_purge(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Throw all dead jobs away."""
    settings = _settings()
    queue = topology_of(settings).dead
    if not yes:
        typer.confirm(f"Throw away every message of {queue}?", abort=True)
    try:
        typer.echo(f"{purge(BrokerAddress(settings.broker_url), queue)} thrown away")
    except PublishFailed as error:
        _complain(str(error), EXIT_UNAVAILABLE)


@events_app.command("list")
def events_list() -> None:
    """One line a terminal webhook that was given up: job, event, receiver, why."""
    for message in _queue("events_dead"):
        try:
            event = OutboxMessage.model_validate_json(message.body)
        except ValidationError:
            typer.echo(f"{message.message_id}\tnot readable")
            continue
        reason = str(message.headers.get("x-lora-reason", ""))
        typer.echo("\t".join([event.job_id, event.event, event.base, reason]))


@events_app.command("replay")
def events_replay(
    job_id: Annotated[str | None, typer.Argument(help="The job's id; all of them if none.")] = None,
) -> None:
    """Send given-up webhooks again, as they were, with all their tries before them."""
    settings = _settings()

    def chosen(message: QueuedMessage) -> QueuedMessage | None:
        event = OutboxMessage.model_validate_json(message.body)
        if job_id not in (None, event.job_id):
            return None
        typer.echo(f"{event.job_id}: {event.event} goes to {event.base} again")
        return fresh_event(message, _record(event.job_id, settings))

    _moved("events_dead", "events", chosen)


@app.command()
def schema() -> None:
    """Print the contract as JSON Schema."""
    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path(
        "demo-output"
    ),
) -> None:
    """Run the main job on this machine, with every real part made on the fly."""
    # torch and moto come with the demo; no other verb may pay for them.
    from worker.demo.run import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(output))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The console script."""
    app()


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        _refuse_settings(error)


def _refuse_settings(error: SettingsError) -> NoReturn:
    for problem in error.problems:
        typer.echo(f"lora-worker: {problem}", err=True)
    raise typer.Exit(EXIT_SETTINGS)


def _complain(sentence: str, status: int) -> NoReturn:
    typer.echo(f"lora-worker: {sentence}", err=True)
    raise typer.Exit(status)


def _parsed(body: bytes, settings: Settings) -> ParsedMessage:
    try:
        return parse_message(body, max_images=settings.max_images)
    except InvalidJob as error:
        for field, what in error.problems:
            typer.echo(f"{field}: {what}" if field else what, err=True)
        raise typer.Exit(EXIT_BAD_JOB) from None


def _catalogue(settings: Settings) -> dict[str, BaseModelEntry]:
    try:
        return catalogue_of(settings)
    except SettingsError as error:
        _refuse_settings(error)


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
        _complain(f"--parameter {text!r} must look like NAME=VALUE", EXIT_SETTINGS)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _queue(name: str) -> list[QueuedMessage]:
    """The messages of one queue of the topology, left where they are."""
    settings = _settings()
    configure_logging("WARNING", "console", settings.secret_values)
    queue = getattr(topology_of(settings), name)
    try:
        return look_at(BrokerAddress(settings.broker_url), queue)
    except PublishFailed as error:
        _complain(str(error), EXIT_UNAVAILABLE)


def _moved(
    source: str, target: str, chosen: Callable[[QueuedMessage], QueuedMessage | None]
) -> None:
    """Move what `chosen` makes of each message between two queues of the topology."""
    settings = _settings()
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
        _complain(str(error), EXIT_UNAVAILABLE)
    typer.echo(f"{count} moved")


def _record(job_id: str, settings: Settings) -> JobRecord:
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        _complain(f"{job_id!r} is not a job id", EXIT_BAD_JOB)
    return JobRecord(s3_store(settings), settings.s3_bucket, job_id)


def _wait_for(job_id: str, settings: Settings) -> Result:
    record = _record(job_id, settings)
    while True:
        try:
            if result := record.result():
                return result
        except StorageError as error:
            if not error.transient:
                _complain(f"the result cannot be looked up: {error}", EXIT_UNAVAILABLE)
        time.sleep(_WAIT_SECONDS)


if __name__ == "__main__":
    sys.exit(app())
