"""The real worker with a stand-in trainer: `python -m tests.standin_worker [STEP_SECONDS]`."""

import sys

from worker.jobs.supervisor import Supervisor
from worker.observability.logging import configure_logging
from worker.settings import load_settings


def main() -> int:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, settings.secret_values)
    trainer = (sys.executable, "-m", "tests.standin_trainer", *sys.argv[1:])
    supervisor = Supervisor(settings, trainer_command=trainer)
    supervisor.install_signal_handlers()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
