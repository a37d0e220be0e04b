"""Is everything here that jobs need? What a start refuses on, and what `doctor` prints.

Each check looks at one thing and says one sentence. None of them leaves anything changed.
"""

from collections.abc import Callable, Iterator

from worker.jobs.finding import Finding
from worker.jobs.machine_checks import disk, gpus, memory, model_files
from worker.jobs.service_checks import broker, broker_lets_us_in, pictures, store, webhooks
from worker.settings import Settings, SettingsError

Check = Callable[[Settings], list[Finding]]

#: The cheap and certain ones first: a broken machine should not wait for the network.
AT_START: tuple[Check, ...] = (disk, model_files, memory, broker_lets_us_in, gpus)
EVERY: tuple[Check, ...] = (disk, memory, gpus, model_files, broker, store, pictures, webhooks)


def refuse_to_start(settings: Settings) -> None:
    """The checks before a start.

    A broker or a store that is not there yet is no reason: the worker waits for both.

    Raises:
        SettingsError: one sentence for each check that failed.
    """
    found = [finding for check in AT_START for finding in check(settings)]
    if failed := [finding.sentence for finding in found if finding.verdict == "failed"]:
        raise SettingsError(failed)


def examine_all(settings: Settings) -> Iterator[Finding]:
    """Every check there is, as `lora-worker doctor` shows them."""
    for check in EVERY:
        yield from check(settings)
