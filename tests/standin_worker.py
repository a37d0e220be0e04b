"""The real worker with a stand-in trainer: `python -m tests.standin_worker [STEP_SECONDS]`.

`MAX_JOBS` and `EXIT_WHEN_IDLE` in the environment are the options of `lora-worker run`.
"""

import os
import sys

from worker.jobs.retirement import RunLimits
from worker.jobs.supervisor import Supervisor
from worker.observability.logging import configure_logging
from worker.settings import load_settings


def main() -> int:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    trainer = (sys.executable, "-m", "tests.standin_trainer", *sys.argv[1:])
    jobs, idle = os.environ.get("MAX_JOBS"), os.environ.get("EXIT_WHEN_IDLE")
    limits = RunLimits(int(jobs) if jobs else None, float(idle) if idle else None)
    supervisor = Supervisor(settings, limits=limits, trainer_command=trainer)
    supervisor.install_signal_handlers()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
