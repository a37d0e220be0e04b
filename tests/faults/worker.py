"""The real worker with a trainer, both with failpoints: `python -m tests.faults.worker`.

Environment: `FAULT` as `Fault.text()` gives it, `FAULT_FOLDER`; for the stand-in trainer
`STEP_SECONDS`, `CHECKPOINT_STEPS` (0: as often as the job's `checkpoint_seconds` says); for the
real one `REAL_TRAINER=1`. `LOUD_LIBRARIES` are loggers to be written from DEBUG on.
"""

import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

from tests.faults.failpoints import Failpoints, Fault
from tests.faults.seams import install
from worker.jobs.supervisor import Supervisor
from worker.jobs.trainer_process import TrainerProcess
from worker.observability.logging import configure_logging
from worker.settings import load_settings

#: A training without a step for so long is stuck, seconds; the product waits a minute.
STUCK_AFTER_SECONDS = 2.0


def main() -> int:
    # For a worker that does not come to its end: what is each of its threads doing?
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    for name in filter(None, os.environ.get("LOUD_LIBRARIES", "").split(",")):
        logging.getLogger(name).setLevel(logging.DEBUG)
    fault, folder = os.environ.get("FAULT", ""), os.environ["FAULT_FOLDER"]
    install(Failpoints("supervisor", Fault.parse(fault), Path(folder)))
    if os.environ.get("REAL_TRAINER"):
        trainer = ("tests.faults.real_trainer", "--checkpoint-seconds", "0", folder, fault)
    else:
        TrainerProcess.__init__.__kwdefaults__["stuck_after_seconds"] = STUCK_AFTER_SECONDS
        pace = (os.environ.get("STEP_SECONDS", "0.03"), os.environ.get("CHECKPOINT_STEPS", "2"))
        trainer = ("tests.faults.trainer", *pace, folder, fault)
    supervisor = Supervisor(settings, trainer_command=(sys.executable, "-m", *trainer))
    supervisor.install_signal_handlers()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
