"""How soon is the supervisor up, and how much memory does it take? `python -m benchmarks.startup`.

Measures fresh processes that import the supervisor with all that it needs, and build it; then a
real worker that is connected to a real broker and store. The last line is one JSON object: medians
of time and memory, memory of the connected worker, also of one with `PACK_SLOTS`, and the modules
that may not be there.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.s3_server import S3Server

#: Processes that are measured; the first one warms the file cache and does not count.
RUNS = 7

#: `PACK_SLOTS` of the other worker that is measured.
PACKED = 8

#: Runs in the fresh process, whose clock began when it was started.
_PROBE = """
import json, sys, time
from worker.cli import app
from worker.jobs.supervisor import Supervisor
from worker.settings import load_settings
supervisor = Supervisor(load_settings())
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
memory = int(status["VmHWM"].split()[0]) / 1024
heavy = sorted({"torch", "diffusers", "transformers", "peft", "accelerate"} & set(sys.modules))
print(json.dumps({"ended": time.time(), "rss_mb": memory, "heavy": heavy}))
"""


@dataclass(frozen=True)
class Start:
    """One start: seconds until built, peak memory in MB, modules that are too heavy for it."""

    seconds: float
    rss_mb: float
    heavy: list[str]


def measure(folder: Path) -> Start:
    """Build a supervisor in a fresh process."""
    (folder / "models.toml").write_text('[tiny]\nlocation = "model"\n')
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (folder / "model" / part).mkdir(parents=True, exist_ok=True)
        (folder / "model" / part / "empty.safetensors").touch()
    environment = {
        **os.environ,
        "BASE_MODELS_FILE": str(folder / "models.toml"),
        "DEFAULT_BASE_MODEL": "tiny",
        "LOG_LEVEL": "ERROR",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    began = time.time()
    answer = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(answer.stdout.strip().splitlines()[-1])
    return Start(figures["ended"] - began, figures["rss_mb"], figures["heavy"])


def connected_rss_mb(folder: Path, pack_slots: int) -> float:
    """Peak memory of a worker's supervisor that waits for jobs, MB."""
    with RabbitMQNode(folder / "rabbitmq") as broker, S3Server() as store:
        store.client().create_bucket(Bucket="results")
        environment = {
            **os.environ,
            **store.environment,
            "RABBITMQ_URL": broker.url,
            "S3_BUCKET": "results",
            "BASE_MODELS_FILE": str(folder / "models.toml"),
            "DEFAULT_BASE_MODEL": "tiny",
            "PACK_SLOTS": str(pack_slots),
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "run"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        connected = 0
        for line in worker.stderr:
            connected += '"broker_connected"' in line
            if connected == 2:  # the consumers of jobs and of events
                break
        status = Path(f"/proc/{worker.pid}/status").read_text()
        worker.terminate()
        worker.communicate()
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1024


def _spread(values: list[float], digits: int) -> str:
    parts = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{part:.{digits}f}" for part in parts) + " (min / median / max)"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(Path(folder)) for _ in range(RUNS + 1)][1:]
        connected_mb = connected_rss_mb(Path(folder), 1)
        packed_mb = connected_rss_mb(Path(folder), PACKED)
    seconds, memory = [run.seconds for run in runs], [run.rss_mb for run in runs]
    print(f"supervisor built, seconds: {_spread(seconds, 2)}")
    print(f"peak memory, MB:           {_spread(memory, 0)}")
    print(f"connected worker, MB:      {connected_mb:.1f}")
    print(f"the same, PACK_SLOTS={PACKED}, MB: {packed_mb:.1f}")
    print(
        json.dumps(
            {
                "seconds": round(statistics.median(seconds), 3),
                "rss_mb": round(statistics.median(memory), 1),
                "connected_rss_mb": round(connected_mb, 1),
                "packed_rss_mb": round(packed_mb, 1),
                "heavy_modules": runs[0].heavy,
            }
        )
    )


if __name__ == "__main__":
    main()
