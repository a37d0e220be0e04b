"""The campaign: every fault, then the journals. `python -m tests.faults [--broker URL] [PATTERN]`.

Prints a line a case, a table a kind, once more what was broken, and as last line one JSON
object with the sums. The exit status is 0 if no promise was broken in any case.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from tests.faults import (
    bit_exact,
    brokers,
    crash_points,
    duplicates,
    failing_calls,
    overlap,
    packed,
    receivers,
    resources,
    secrets,
    signals,
    stores,
    zombies,
)
from tests.faults.case import Case
from tests.faults.checker import Counts
from tests.faults.scene import Lab, PointNotReachedError, RealTraining
from tests.faults.tracing import Point, trace
from worker.demo.rabbitmq_node import RabbitMQNode
from worker.demo.s3_server import S3Server

#: Cases played at a time. They wait for most of their time: for leases to go stale, for time-outs.
LANES = 8

#: Of these, for heavy cases.
HEAVY_LANES = 2

#: How often a case is played whose fault does not happen: some points depend on the clock.
TRIES = 3

#: Of a finding, in the short account at the end.
_SHORT_CHARACTERS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="only cases whose name has this")
    parser.add_argument("--broker", help="address of a broker; a private node if none is given")
    parser.add_argument("--lanes", type=int, default=LANES, help="cases played at a time")
    parser.add_argument(
        "--real-trainer", action="store_true", help="train for real, where a point may matter to it"
    )
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        lab = Lab("", stack.enter_context(S3Server()), folder)
        if asked.broker:
            lab = replace(lab, broker_url=asked.broker)
        else:
            node = stack.enter_context(RabbitMQNode(folder / "rabbitmq"))
            lab = replace(lab, broker_url=node.url, login=secrets.login(node))
        if asked.real_trainer:
            lab = replace(lab, real=prepare(folder))
        traced = trace(lab)
        if lab.real:
            known = {"adapter": traced.adapter, "adapter_sha256": traced.adapter_sha256}
            lab = replace(lab, real=replace(lab.real, **known))
            cases = real_cases(traced.points)
        else:
            cases = all_cases(traced.points, asked.broker)
        chosen = [one for one in cases if asked.pattern in _title(one)]
        played = list(play_all(chosen, lab, asked.lanes))
    _print_table(played)
    for case, counts, _ in played:
        if not counts.clean:
            print(f"BROKEN {_title(case)}: {counts.findings[0][:_SHORT_CHARACTERS]}")
    total = Counts()
    for _, counts, _ in played:
        total.add(counts)
    sums = {name: value for name, value in asdict(total).items() if name != "findings"}
    seconds = round(time.monotonic() - began)
    unclean = sum(not counts.clean for _, counts, _ in played)
    print(json.dumps({**sums, "cases": len(played), "unclean": unclean, "seconds": seconds}))
    return 1 if unclean or not played else 0


def all_cases(points: Sequence[Point], given_broker: str | None) -> list[Case]:
    """Every case; those that take longest first."""
    return [
        bit_exact.case(),
        *brokers.cases(given_broker),
        *signals.cases(),
        *receivers.cases(),
        *zombies.cases(points),
        *stores.cases(),
        *resources.cases(),
        *duplicates.cases(),
        *crash_points.cases(points),
        *failing_calls.cases(points),
        *overlap.cases(points),
        *packed.cases(points),
        *secrets.cases(),
    ]


def real_cases(points: Sequence[Point]) -> list[Case]:
    """What may depend on the trainer; every adapter must be bit for bit the undisturbed one.

    Those of jobs that shared passes must be it but for the order of sums.
    """
    return [
        *zombies.cases(points),
        *signals.at_points(),
        *crash_points.cases(points),
        *packed.real_cases(points),
    ]


def prepare(folder: Path) -> RealTraining:
    """Make the base model and the picture, in a process of their own: they need torch."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.faults.real_training", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    model, picture = made.stdout.splitlines()[-2:]
    return RealTraining(Path(model), Path(picture).read_bytes())


def play_all(cases: Sequence[Case], lab: Lab, lanes: int) -> Iterator[tuple[Case, Counts, float]]:
    """Play side by side those that may be, then the others; yields each as it ends."""
    light = max(1, lanes - HEAVY_LANES)
    with ThreadPoolExecutor(light) as pool, ThreadPoolExecutor(HEAVY_LANES) as heavy_pool:
        running = {
            (heavy_pool if case.heavy else pool).submit(_play, case, lab): case
            for case in cases
            if not case.alone
        }
        for ended in as_completed(running):
            _print(running[ended], *ended.result())
            yield running[ended], *ended.result()
    for case in cases:
        if case.alone:
            counts, seconds = _play(case, lab)
            _print(case, counts, seconds)
            yield case, counts, seconds


def _play(case: Case, lab: Lab) -> tuple[Counts, float]:
    began = time.monotonic()
    counts = Counts()
    for _ in range(TRIES):
        try:
            counts = case.play(lab)
            break
        except PointNotReachedError as error:
            counts = Counts(findings=[f"not played: {error}"])
        except Exception as error:
            counts = Counts(findings=[f"not played: {error!r}", traceback.format_exc()])
            break
    return counts, time.monotonic() - began


def _print(case: Case, counts: Counts, seconds: float) -> None:
    print(f"{'ok' if counts.clean else 'BROKEN':7}{seconds:5.1f} s  {_title(case)}", flush=True)
    for finding in counts.findings:
        print(f"        {finding}", flush=True)


def _print_table(played: Sequence[tuple[Case, Counts, float]]) -> None:
    names = ("published", "committed", "failed", "lost", "duplicated", "contradicting")
    names += ("progress_after_terminal", "steps_redone", "terminal_seen_twice")
    print("\n" + f"{'kind':16}{'cases':>7}{'clean':>7}" + "".join(f"{n[:13]:>15}" for n in names))
    for kind in dict.fromkeys(case.kind for case, _, _ in played):
        of_kind = [counts for case, counts, _ in played if case.kind == kind]
        sums = [sum(getattr(counts, name) for counts in of_kind) for name in names]
        clean = sum(counts.clean for counts in of_kind)
        print(f"{kind:16}{len(of_kind):7}{clean:7}" + "".join(f"{value:15}" for value in sums))


def _title(case: Case) -> str:
    return f"{case.kind}: {case.name}"


if __name__ == "__main__":
    sys.exit(main())
