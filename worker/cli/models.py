"""`lora-worker models`: the catalogue's base models and their files on this machine."""

from typing import Annotated

import typer

from worker.cli.outcome import (
    EXIT_BAD_JOB,
    EXIT_UNAVAILABLE,
    complain,
    refuse_settings,
    settings_or_exit,
)
from worker.contract.base_model import BaseModelEntry
from worker.jobs.from_settings import catalogue_of
from worker.jobs.model_files import digest, folder_of, missing, pull, weight_bytes
from worker.settings import SettingsError

models_app = typer.Typer(help="Base models.", no_args_is_help=True)


@models_app.command("list")
def models_list(
    digests: Annotated[
        bool, typer.Option("--digest", help="Read the weights and print their digest.")
    ] = False,
) -> None:
    """One line a base model: name, whether it is here, size, revision, location; 69 if one is not.

    With --digest a row whose `digest` is another counts as not here.
    """
    whole = True
    for entry in _catalogue().values():
        state, problem = _state(entry, digests)
        whole = whole and not problem
        typer.echo(
            "\t".join([entry.name, state, f"revision {entry.revision or 'any'}", entry.location])
        )
    if not whole:
        raise typer.Exit(EXIT_UNAVAILABLE)


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A row of the catalogue.")]) -> None:
    """Fetch a base model from the hub: the row's revision, safetensors only, digest compared."""
    catalogue = _catalogue()
    if name not in catalogue:
        complain(f"{name!r} is not in the catalogue; it has {', '.join(catalogue)}", EXIT_BAD_JOB)
    entry = catalogue[name]
    folder = folder_of(entry)
    if folder is None or missing(entry, folder):
        try:
            pull(entry)
        except (OSError, ValueError) as error:
            complain(f"{entry.location} cannot be fetched: {error}", EXIT_UNAVAILABLE)
    state, problem = _state(entry, digests=True)
    if problem:
        complain(f"{name}: {state}", EXIT_UNAVAILABLE)
    typer.echo(f"{name}\t{state}")


def _state(entry: BaseModelEntry, digests: bool) -> tuple[str, bool]:
    """A few words, and whether the model cannot be used."""
    folder = folder_of(entry)
    if folder is None:
        return "not here", True
    if clauses := missing(entry, folder):
        return "; ".join(clauses), True
    size = f"here, {weight_bytes(entry, folder) / 2**30:.2f} GiB"
    if not digests:
        return size, False
    found = digest(entry, folder)
    if entry.digest not in (None, found):
        return f"other weights than the catalogue's digest: {found}", True
    return f"{size}, {found}", False


def _catalogue() -> dict[str, BaseModelEntry]:
    try:
        return catalogue_of(settings_or_exit())
    except SettingsError as error:
        refuse_settings(error)
