"""The benchmarks keep up with the code that they measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "DIFFUSERS_SCRIPT"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_benchmark_can_be_imported():
    run("-c", f"import importlib\nfor m in {MODULES}: importlib.import_module('benchmarks.' + m)")


def test_the_comparison_with_diffusers_loop_ends_with_its_figures():
    output = run("-m", "benchmarks.training", "--size", "tiny", "--steps", "8", "--pairs", "1")
    figures = json.loads(output.splitlines()[-1])
    assert {
        "step_ratio_median",
        "seed_loop_ratio_median",
        "job_ratio_median",
        "first_step_seconds",
        "memory_ratio_median",
    } <= figures.keys()


def test_the_comparison_of_shared_passes_ends_with_its_figures():
    sizes = ("--size", "tiny", "--jobs", "1", "2", "--rounds", "1", "--steps", "2")
    output = run("-m", "benchmarks.packing", *sizes, "--most-processes", "2")
    figures = json.loads(output.splitlines()[-1])
    assert {
        f"{name}_j{jobs}"
        for name in ("samples_per_second", "cpu_time_ratio", "wall_ratio", "versus_processes")
        for jobs in (1, 2)
    } <= figures.keys()
    assert min(figures[f"samples_per_second_j{jobs}"] for jobs in (1, 2)) > 0
