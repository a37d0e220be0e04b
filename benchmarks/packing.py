"""What do shared passes bring? `python -m benchmarks.packing`: J jobs in one pass, and otherwise.

For each number of jobs J, in rounds that alternate: J plain trainings one after another in this
process, J plain processes side by side, and J jobs that share their passes, each in its thread as
in a trainer with J slots. On a CPU the rounds are compared by CPU time, which other programs on the
machine disturb least, and by wall clock against the processes, which share the cores. On a GPU all
is by wall clock, the device awaited. The last line is one JSON object.

`--size full --resolution 512 --precision bf16` is Stable Diffusion 1.5's sizes, for a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import OurLoop, PeerLoop
from benchmarks.training import machine
from benchmarks.workload import RESOLUTION, Workload
from worker.training.base_model import BaseModelShelf, LoadedBaseModel
from worker.training.device import arithmetic_for, this_device
from worker.training.packing.packed_seat import Needs
from worker.training.packing.together import Together

#: Jobs at a time.
JOBS = (1, 2, 4, 8, 16)

#: Rounds that count, after one that does not; steps of each job in a round.
_ROUNDS = 5
_STEPS = 4

#: The rounds of one number of jobs: CPU seconds and wall seconds of each.
Times = dict[str, list[tuple[float, float]]]


def main() -> None:
    options = _options()
    if options.child is not None:
        _serve_rounds(options)
        return
    on_gpu = torch.cuda.is_available()
    print(f"{options.size}, {options.resolution} px, dropout {options.dropout}, {machine()}")
    figures: dict[str, object] = {
        "size": options.size,
        "resolution": options.resolution,
        "dropout": options.dropout,
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(options.size, Path(folder), 1, options.precision)
        workload.prepare()
        print(
            "\n| jobs | samples/s one after another | side by side | packed | packed / one after "
            "another, CPU time min / median / max | the same, wall clock "
            "| packed / side by side, CPU time | the same, wall clock |"
            "\n|---|---|---|---|---|---|---|---|"
        )
        for count in options.jobs:
            times = _measured(workload, options, count)
            figures |= _row(count, times, count * options.steps * options.rounds, on_gpu=on_gpu)
        if on_gpu:
            figures["script_samples_per_second"] = _script(workload, options)
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=RESOLUTION, default="medium")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, nargs="+", default=JOBS)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--steps", type=int, default=_STEPS, help="of each job in a round")
    parser.add_argument("--most-processes", type=int, default=max(JOBS), help="side by side")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(workload: Workload, options: argparse.Namespace, count: int) -> Times:
    """The times of alternating rounds of `count` jobs."""
    with ExitStack() as stack:
        loops = _loops(workload, options, count)
        ways: dict[str, Callable[[], float]] = {
            "one after another": lambda: _one_after_another(loops, options.steps),
            "packed": stack.enter_context(_packed(loops, options.steps)),
        }
        if count <= options.most_processes:
            ways["side by side"] = stack.enter_context(_side_by_side(options, workload, count))
        times: Times = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way in list(ways) if number % 2 else reversed(list(ways)):
                began = time.process_time(), time.perf_counter()
                elsewhere = ways[way]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ended = time.process_time(), time.perf_counter()
                times[way].append((ended[0] - began[0] + elsewhere, ended[1] - began[1]))
    return {way: seconds[1:] for way, seconds in times.items()}


def _script(workload: Workload, options: argparse.Namespace) -> float:
    """Samples a second of diffusers' loop, transcribed, on the GPU."""
    loop, rates = PeerLoop(workload), []
    for _ in range(options.rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(options.steps):
            loop.step()
        torch.cuda.synchronize()
        rates.append(options.steps / (time.perf_counter() - began))
    print(f"\ntranscription of diffusers' loop: {_spread(rates[1:])} samples/s")
    return round(statistics.median(rates[1:]), 3)


def _one_after_another(loops: list[OurLoop], steps: int) -> float:
    for loop in loops:
        for _ in range(steps):
            loop.step()
    return 0.0


def _loops(workload: Workload, options: argparse.Namespace, count: int) -> list[OurLoop]:
    """Jobs of their own on one base model."""
    order = workload.command(workload.folder / "base")
    arithmetic = arithmetic_for(order.parameters.mixed_precision, this_device())
    model: LoadedBaseModel = BaseModelShelf().get(order.base_model, arithmetic)
    return [
        OurLoop(workload, launch="eager", model=model, **_rules(options, job))
        for job in range(count)
    ]


def _rules(options: argparse.Namespace, job: int) -> dict[str, Any]:
    """What jobs of users are like: dropout, clipping, a rate of their own."""
    return {
        "resolution": options.resolution,
        "lora_dropout": options.dropout,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-4 * (1 + job % 3),
    }


@contextmanager
def _packed(loops: list[OurLoop], steps: int) -> Iterator[Callable[[], float]]:
    """A round of jobs that share passes, each in its thread."""
    together = Together(BaseModelShelf(), slots=len(loops))
    begin, end = (threading.Barrier(len(loops) + 1) for _ in range(2))
    done = threading.Event()

    def work(loop: OurLoop) -> None:
        while True:
            begin.wait()
            if done.is_set():
                return
            with (
                together.baton.held(),
                together.pack.seat(Needs(), lambda event: None, lambda: None) as seat,
            ):
                loop.sit(seat)
                with together.baton.laid_down():
                    seated.wait()  # all are there before the first step
                for _ in range(steps):
                    loop.step()
                loop.sit(None)
            end.wait()

    seated = threading.Barrier(len(loops))
    threads = [threading.Thread(target=work, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()

    def round_of_all() -> float:
        begin.wait()
        end.wait()
        return 0.0

    try:
        yield round_of_all
    finally:
        done.set()
        begin.wait()
        for thread in threads:
            thread.join()


@contextmanager
def _side_by_side(
    options: argparse.Namespace, workload: Workload, count: int
) -> Iterator[Callable[[], float]]:
    """A round of plain processes, all at once; it says what CPU time they took."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "resolution")]
    arguments += [f"--{name}={getattr(options, name)}" for name in ("precision", "dropout")]
    arguments += [f"--steps={options.steps}", f"--folder={workload.folder}"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.packing", *arguments, f"--child={job}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for job in range(count)
    ]

    def hear() -> float:
        seconds = 0.0
        for child in children:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("a process has ended early")
            seconds += float(line)
        return seconds

    def round_of_all() -> float:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return hear()

    try:
        hear()
        yield round_of_all
    finally:
        for child in children:
            child.communicate()


def _serve_rounds(options: argparse.Namespace) -> None:
    """One of the processes: a round for each line on stdin."""
    workload = Workload(options.size, options.folder, 1, options.precision)
    loop = OurLoop(workload, launch="eager", **_rules(options, options.child))
    print(0, flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        for _ in range(options.steps):
            loop.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.process_time() - began, flush=True)


def _row(count: int, times: Times, samples: int, *, on_gpu: bool) -> dict[str, object]:
    """Print the line of one number of jobs, which made so many samples each way; its figures."""
    rates = {way: samples / sum(wall for _, wall in rounds) for way, rounds in times.items()}
    pairs = list(zip(times["one after another"], times["packed"], strict=True))
    cpu, wall = ([plain[clock] / packed[clock] for plain, packed in pairs] for clock in range(2))
    processes = zip(times.get("side by side", []), times["packed"], strict=False)
    beside_cpu, beside = [], []
    for plain, packed in processes:
        beside_cpu.append(plain[0] / packed[0])
        beside.append(plain[1] / packed[1])
    print(
        f"| {count} | {rates['one after another']:.2f} | {rates.get('side by side', 0):.2f} "
        f"| {rates['packed']:.2f} | {'–' if on_gpu else _spread(cpu)} | {_spread(wall)} "
        f"| {_spread(beside_cpu)} | {_spread(beside)} |",
        flush=True,
    )
    figures: dict[str, object] = {
        f"samples_per_second_j{count}": round(rates["packed"], 3),
        f"wall_ratio_j{count}": round(statistics.median(wall), 3),
    }
    if not on_gpu:
        figures[f"cpu_time_ratio_j{count}"] = round(statistics.median(cpu), 3)
    if beside:
        figures[f"versus_processes_j{count}"] = round(statistics.median(beside), 3)
        figures[f"versus_processes_cpu_j{count}"] = round(statistics.median(beside_cpu), 3)
    return figures


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


if __name__ == "__main__":
    main()
