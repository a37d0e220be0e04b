"""How fast do we train, against diffusers' own script? `python -m benchmarks.training`.

Pairs of processes, alternating: diffusers' `train_text_to_image_lora.py` and our trainer on the
same base model, pictures, steps, batch, precision and rank. The script is taken by path from
`DIFFUSERS_SCRIPT` and run by the interpreter `DIFFUSERS_PYTHON` (it needs torchvision and
datasets); without one its transcription stands in, and the table says so. Then rounds in one
process: the loop of a naive worker (every picture encoded at every step, activations recomputed),
the script's loop, and ours. On a CPU steps and jobs are compared by CPU time, which other programs
on the machine disturb least. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.loops import OurLoop, PeerLoop
from benchmarks.observation import Observation, observe_ours, observe_peer
from benchmarks.workload import RESOLUTION, STEPS, STEPS_IN_A_ROUND, Workload

#: Pairs of processes, and rounds within one process; one more round goes first and does not count.
PAIRS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=RESOLUTION, default="medium")
    parser.add_argument("--steps", type=int, help="optimizer steps of each process")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--skip", choices=("processes", "rounds"), help="measure the other alone")
    options = parser.parse_args()
    script, on_gpu = os.environ.get("DIFFUSERS_SCRIPT"), torch.cuda.is_available()
    figures: dict[str, object] = {
        "size": options.size,
        "machine": machine(),
        "peer": Path(script).name if script else "transcription of its loop",
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = options.steps or STEPS[options.size]
        workload = Workload(options.size, Path(folder), steps, options.precision)
        workload.prepare()
        print(f"{options.size}, {workload.resolution} px, {steps} steps, on {machine()}")
        print(f"peer: {figures['peer']}; clock: {'wall' if on_gpu else 'CPU time'}\n")
        if options.skip != "processes":
            figures |= compare_processes(workload, script, options.pairs, on_gpu=on_gpu)
        if options.skip != "rounds" and not on_gpu:
            figures |= compare_rounds(workload, options.pairs)
    print(json.dumps(figures))


def machine() -> str:
    """What this runs on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def compare_processes(
    workload: Workload, script: str | None, pairs: int, *, on_gpu: bool
) -> dict[str, object]:
    """Alternating processes; each figure is a ratio within a pair."""
    peers: list[Observation] = []
    ours: list[Observation] = []
    for pair in range(pairs):
        measures = [
            lambda: peers.append(observe_peer(workload, script, on_gpu=on_gpu)),
            lambda: ours.append(observe_ours(workload, on_gpu=on_gpu)),
        ]
        for measure in measures if pair % 2 == 0 else reversed(measures):
            measure()
    print("| a process each | peer | ours | ratio min / median / max |\n|---|---|---|---|")
    figures: dict[str, object] = {}
    for name, what in (
        ("step_seconds", "step, s"),
        ("job_seconds", "whole job (ours: warm), s"),
        ("first_step_seconds", "to the first step (ours: warm), s of wall clock"),
        ("peak_bytes", "peak memory, bytes"),
    ):
        theirs, mine = ([asdict(one)[name] for one in side] for side in (peers, ours))
        ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
        print(f"| {what} | {_short(theirs)} | {_short(mine)} | {_spread(ratios)} |")
        if name == "first_step_seconds":
            figures["first_step_seconds"] = round(statistics.median(mine), 3)
        elif name == "peak_bytes":
            figures["memory_ratio_median"] = round(1 / statistics.median(ratios), 3)
        else:
            figures[name.replace("seconds", "ratio_median")] = _median(ratios)
    print()
    return figures


def compare_rounds(workload: Workload, rounds: int) -> dict[str, object]:
    """CPU time of some steps of each loop in turn, in this process."""
    loops = {
        "naive": PeerLoop(workload, checkpointing=True),
        "script": PeerLoop(workload),
        "ours": OurLoop(workload),
    }
    steps = STEPS_IN_A_ROUND[workload.size]
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds + 1):
        for name, loop in loops.items():
            began = time.process_time()
            for _ in range(steps):
                loop.step()
            seconds[name].append((time.process_time() - began) / steps)
    print(
        "| rounds in one process | CPU s a step | against ours min / median / max |\n|---|---|---|"
    )
    ratios = {}
    for name in loops:
        counted = [a / b for a, b in zip(seconds[name][1:], seconds["ours"][1:], strict=True)]
        ratios[name] = _median(counted)
        print(f"| {name} | {_short(seconds[name][1:])} | {_spread(counted)} |")
    print()
    return {
        "seed_loop_ratio_median": ratios["naive"],
        "script_loop_ratio_median": ratios["script"],
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _short(values: list[float]) -> str:
    return f"{statistics.median(values):.4g}"


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


if __name__ == "__main__":
    main()
