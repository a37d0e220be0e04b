"""`lora-worker reproduce`: is what a manifest describes what comes out?"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from worker.cli.outcome import (
    EXIT_BAD_JOB,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    complain,
    refuse_settings,
    settings_or_exit,
)
from worker.contract.errors import InvalidJob, JobError
from worker.contract.job import TrainingJob
from worker.contract.manifest import Manifest
from worker.contract.pipe import FinishedEvent
from worker.jobs.from_settings import catalogue_of, image_fetcher, s3_store
from worker.jobs.local_run import train_locally
from worker.jobs.reproduction import (
    Comparison,
    PicturesDiffer,
    compare,
    job_of,
    pictures_by_hash,
    pictures_by_source,
)
from worker.observability.logging import configure_logging
from worker.observability.progress_bar import ProgressBar
from worker.settings import Settings, SettingsError

#: Another adapter came out.
EXIT_DIFFERENT = 1


def reproduce(
    manifest_file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The manifest.json of a job.")
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder with the pictures, found by their hashes; by default they are fetched "
            "from where they came.",
        ),
    ] = None,
) -> None:
    """Train a finished job again, here, and say whether the adapter is the same, bit for bit."""
    settings = settings_or_exit()
    configure_logging("WARNING", "console", settings.secret_values)
    try:
        manifest = Manifest.model_validate_json(manifest_file.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        complain(f"{manifest_file} is not a manifest of this version: {where}", EXIT_BAD_JOB)
    with tempfile.TemporaryDirectory(prefix="lora-worker-") as folder:
        job = _job(manifest, pictures, settings, Path(folder))
        comparison = _train_and_compare(manifest, job, settings, Path(folder) / "output")
    typer.echo(comparison.sentence())
    if not comparison.agrees:
        raise typer.Exit(EXIT_DIFFERENT)


def _job(
    manifest: Manifest, pictures: Path | None, settings: Settings, folder: Path
) -> TrainingJob:
    fetched = folder / "pictures"
    fetched.mkdir()
    try:
        if pictures is not None:
            paths = pictures_by_hash(manifest, pictures)
        else:
            fetcher = image_fetcher(settings, s3_store(settings), allow_files=True)
            paths = pictures_by_source(manifest, fetcher, fetched)
        return job_of(manifest, paths)
    except SettingsError as error:
        refuse_settings(error)
    except PicturesDiffer as error:
        complain(f"the pictures are not those of the manifest: {error}", EXIT_BAD_JOB)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        complain(f"this version cannot train it: {where}: {first['msg']}", EXIT_BAD_JOB)


def _train_and_compare(
    manifest: Manifest, job: TrainingJob, settings: Settings, output: Path
) -> Comparison:
    with ProgressBar() as bar:
        try:
            ended = train_locally(
                job,
                settings,
                catalogue_of(settings),
                output,
                on_event=bar.on_event,
                should_stop=bar.should_stop,
            )
        except SettingsError as error:
            refuse_settings(error)
        except InvalidJob as error:
            complain(error.message, EXIT_BAD_JOB)
        except JobError as error:
            complain(f"{error.code}: {error.message}", EXIT_JOB_FAILED)
    if not isinstance(ended, FinishedEvent):
        complain("stopped before it was trained", EXIT_INTERRUPTED)
    return compare(manifest, ended, output)
