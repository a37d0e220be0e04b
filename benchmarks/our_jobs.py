"""Our trainer's process: a job that warms it, then the job that counts.

`python -m benchmarks.our_jobs SIZE FOLDER STEPS PRECISION`, started by `benchmarks.observation`.
"""

import gc
import sys
from pathlib import Path

from benchmarks.recorder import mark
from benchmarks.workload import Workload
from worker.training.base_model import BaseModelShelf
from worker.training.device import this_device
from worker.training.job import run_job


def main() -> None:
    size, folder, steps, precision = sys.argv[1:]
    workload = Workload(size, Path(folder), int(steps), precision)  # type: ignore[arg-type]
    shelf = BaseModelShelf()
    warming = workload.command(Path(folder) / "warming", max_train_steps=2)
    for command in (warming, workload.command(Path(folder) / "counting")):
        mark("job")
        run_job(command, shelf, this_device(), report=lambda event: None, should_stop=lambda: None)
        mark("stored")
        gc.collect()  # as the trainer's service does


if __name__ == "__main__":
    main()
