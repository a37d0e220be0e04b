"""The other processes of a trainer with several: they make the steps of the first one's jobs."""

import gc
import os
import signal
import time
import traceback
from typing import NoReturn

from worker.contract.pipe import TrainCommand
from worker.training.base_model import BaseModelShelf
from worker.training.device import this_device
from worker.training.job import run_job
from worker.training.ranks import Ranks

#: What the first process says to the others in place of a job when it ends.
NO_MORE = "no more"

#: How long the first process has to say what was wrong before another one's end is its own.
_LAST_WORDS_SECONDS = 5.0


def follow(ranks: Ranks) -> NoReturn:
    """Make the steps of the first process's jobs with it, until it has no more; then end.

    What ends a job here ends it there as well, and is said there. Where it does not, our end is
    the trainer's, and the job is tried again.
    """
    # A terminal's Ctrl-C is for the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shelf = BaseModelShelf()
    while (word := ranks.from_first(None)) != NO_MORE:
        if not isinstance(word, TrainCommand):
            continue  # whether to stop, asked after our last step
        shelf.allow_hub = word.allow_hub
        try:
            run_job(
                word,
                shelf,
                this_device(),
                report=lambda event: None,
                should_stop=lambda: ranks.from_first(None),
                ranks=ranks,
            )
        except Exception:
            traceback.print_exc()
            time.sleep(_LAST_WORDS_SECONDS)
            os._exit(1)
        gc.collect()
    os._exit(0)
