"""What does one GPU reach? `python -m benchmarks.gpu`: Stable Diffusion 1.5's sizes, 512 px.

It needs torch and this package, and neither a network nor weights: it makes the model with random
ones. Steps are timed after warm-up with the device awaited at both ends; the matrix rate is that of
this GPU, measured here. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.counted import step_work
from benchmarks.loops import OurLoop, PeerLoop
from benchmarks.workload import Workload

#: Steps of a measurement, after as many of warm-up as `_WARM_UP`; measurements of a row.
_STEPS = 20
_WARM_UP = 5
_ROUNDS = 5

#: Side of the square matrices whose product is the measure of the rate.
_MATRIX = 8192

#: Rows: what it is called, pictures in a step, dropout, how steps are launched.
_ROWS = (
    ("eager, batch 1", 1, 0.0, "eager"),
    ("eager, batch 1, dropout 0.1", 1, 0.1, "eager"),
    ("recorded, batch 1", 1, 0.0, "graph"),
    ("recorded, batch 1, dropout 0.1", 1, 0.1, "graph"),
    ("recorded, batch 8", 8, 0.0, "graph"),
    ("compiled, batch 1", 1, 0.0, "compile"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="bf16")
    parser.add_argument("--size", choices=("tiny", "medium", "full"), default="full")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; python -m benchmarks.training measures a CPU")
    name, rate = torch.cuda.get_device_name(), matrix_rate(options.precision)
    gflop = step_work(resolution=512).gflop
    print(f"{name}, torch {torch.__version__}, {options.precision}, {rate:.0f} TFLOP/s measured\n")
    print("| | steps/s min / median / max | samples/s | of the matrix rate | peak, GiB |")
    print("|---|---|---|---|---|")
    figures: dict[str, object] = {"device": name, "matrix_tflops": round(rate, 1)}
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(options.size, Path(folder), _STEPS, options.precision)
        workload.prepare()
        figures["script's loop"] = row("script's loop", PeerLoop(workload), 1, gflop, rate)
        for title, batch, dropout, launch in _ROWS:
            loop = OurLoop(
                workload,
                launch=launch,
                train_batch_size=batch,
                lora_dropout=dropout,
            )
            figures[title] = row(title, loop, batch, gflop, rate)
            loop.close()
    print(json.dumps(figures))


def row(title: str, loop: OurLoop | PeerLoop, batch: int, gflop: float, rate: float) -> float:
    """Measure a loop and print its line; returns its steps a second."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_WARM_UP):
        loop.step()
    rates = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(_STEPS):
            loop.step()
        torch.cuda.synchronize()
        rates.append(_STEPS / (time.perf_counter() - began))
    median, peak = statistics.median(rates), torch.cuda.max_memory_allocated() / 2**30
    share = median * batch * gflop / 1e3 / rate
    spread = f"{min(rates):.1f} / {median:.1f} / {max(rates):.1f}"
    print(f"| {title} | {spread} | {median * batch:.1f} | {share:.0%} | {peak:.1f} |", flush=True)
    return round(median, 2)


def matrix_rate(precision: str) -> float:
    """TFLOP/s of a large matrix product in `precision`, the best of some."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * _MATRIX**3 / (time.perf_counter() - began) / 1e12)
    return best


if __name__ == "__main__":
    main()
