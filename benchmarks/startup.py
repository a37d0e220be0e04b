"""How soon is the supervisor up, and how much memory does it take? `python -m benchmarks.startup`.

Measures fresh processes that import the supervisor with all that it needs, and build it. The last
line is one JSON object: medians of time and memory, and the modules that may not be there.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

#: Processes that are measured; the first one warms the file cache and does not count.
RUNS = 7

#: Runs in the fresh process. The clock began when the parent started it.
_PROBE = """
import json, sys, time
from worker.cli import app
from worker.jobs.supervisor import Supervisor
from worker.settings import load_settings
supervisor = Supervisor(load_settings())
status = dict(l.split(":", 1) for l in open("/proc/self/status") if ":" in l)
heavy = sorted({"torch", "diffusers", "transformers", "peft", "accelerate"} & set(sys.modules))
print(json.dumps({"ended": time.time(), "rss_mb": int(status["VmHWM"].split()[0]) / 1024, "heavy": heavy}))
"""


def measure(folder: Path) -> dict[str, float | list[str]]:
    """One fresh supervisor: seconds until it is built, peak memory in MB, heavy modules."""
    (folder / "models.toml").write_text('[tiny]\nlocation = "nowhere"\n')
    environment = {
        **os.environ,
        "BASE_MODELS_FILE": str(folder / "models.toml"),
        "DEFAULT_BASE_MODEL": "tiny",
        "LOG_LEVEL": "ERROR",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    clock = "import time; print(time.time(), flush=True);"
    answer = subprocess.run(
        [sys.executable, "-c", clock + _PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    began, found = answer.stdout.strip().splitlines()[0], answer.stdout.strip().splitlines()[-1]
    figures = json.loads(found)
    return {
        "seconds": figures["ended"] - float(began),
        "rss_mb": figures["rss_mb"],
        "heavy": figures["heavy"],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(Path(folder)) for _ in range(RUNS + 1)][1:]
    seconds = [float(run["seconds"]) for run in runs]  # type: ignore[arg-type]
    memory = [float(run["rss_mb"]) for run in runs]  # type: ignore[arg-type]
    print(f"supervisor built: {min(seconds):.2f} / {statistics.median(seconds):.2f} / {max(seconds):.2f} s")
    print(f"peak memory:      {min(memory):.0f} / {statistics.median(memory):.0f} / {max(memory):.0f} MB")
    print(
        json.dumps(
            {
                "seconds": round(statistics.median(seconds), 3),
                "rss_mb": round(statistics.median(memory), 1),
                "heavy_modules": runs[0]["heavy"],
            }
        )
    )


if __name__ == "__main__":
    main()
