"""Jobs that train side by side in this process, all of them from their first step on."""

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.unit.training.builders import build, load
from worker.contract.pipe import TrainCommand
from worker.training.base_model import BaseModelShelf
from worker.training.device import this_device
from worker.training.job import run_job
from worker.training.loop import train
from worker.training.packing.pack import Pack
from worker.training.packing.packed_seat import Needs
from worker.training.packing.together import Together
from worker.training.step import Lesson, Trainee

#: A test that waits longer than this is stuck.
_PATIENCE_SECONDS = 300.0


@dataclass
class Side:
    """A training among others: what it is, what becomes of it."""

    trainee: Trainee
    lesson: Lesson
    should_stop: Callable[[Trainee], Any] = lambda trainee: None
    after_step: Callable[[Trainee], object] = lambda trainee: None
    ended: Any = None
    reports: list[Any] = field(default_factory=list)
    company: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)


def sides(orders: Sequence[TrainCommand], *, double: bool = False) -> list[Side]:
    """Trainings on one base model, each with a UNet of its own."""
    model = load(orders[0], double=double)
    return [Side(*build(order, double=double, model=model)[1:]) for order in orders]


def train_alone(side: Side) -> Side:
    """The training as it is without any company."""
    side.ended = _trained(side)
    return side


def train_together(some: Sequence[Side], shared: Any = None, *, slots: int | None = None) -> Pack:
    """Train all, each in a thread; all have their seats, in this order, before the first step."""
    together = Together(BaseModelShelf(), slots=slots or len(some))
    pack = together.pack
    if shared is not None:
        pack._shared = shared(pack._shared)
    begin = threading.Barrier(len(some))
    order = [threading.Event() for _ in some]

    def work(place: int) -> None:
        side = some[place]
        if place:
            order[place - 1].wait(_PATIENCE_SECONDS)
        with together.baton.held(), pack.seat(Needs(), side.reports.append, lambda: None) as seat:
            order[place].set()
            with together.baton.laid_down():
                begin.wait(_PATIENCE_SECONDS)
            side.trainee.seat = seat
            side.ended = _trained(side)
            side.company, side.summary = seat.company, seat.summary()

    _in_threads([lambda place=place: work(place) for place in range(len(some))])
    return pack


def _trained(side: Side) -> Any:
    try:
        return train(
            side.trainee,
            side.lesson,
            report=side.reports.append,
            should_stop=lambda: side.should_stop(side.trainee),
            checkpoint=lambda: None,
            after_step=lambda: side.after_step(side.trainee),
        )
    except Exception as error:
        return error


def run_together(
    orders: Sequence[TrainCommand], *, drained: bool = False, all_seated: bool = True
) -> tuple[list[Any], list[list[Any]]]:
    """Whole jobs side by side; how each ended, and its events.

    All have their seats, in this order, before the first step, unless that is not asked for. If
    `drained`, all are told to stop then, and do after the pass that comes next.
    """
    together = Together(BaseModelShelf(), slots=len(orders))
    begin = threading.Barrier(len(orders))
    order = [threading.Event() for _ in orders]
    ended: list[Any] = [None] * len(orders)
    events: list[list[Any]] = [[] for _ in orders]

    def work(place: int) -> None:
        @contextmanager
        def seated(*args: Any):
            if place:
                with together.baton.laid_down():
                    order[place - 1].wait(_PATIENCE_SECONDS)
            with together.seated(*args) as seat:
                order[place].set()
                if drained:
                    together.pack.drain()
                with together.baton.laid_down():
                    begin.wait(_PATIENCE_SECONDS)
                yield seat

        def stop() -> Any:
            return "drain" if together.pack.drains else None

        seats = seated if all_seated else together.seated
        try:
            with together.job(orders[place], events[place].append, stop) as shelf:
                ended[place] = run_job(
                    orders[place],
                    shelf,
                    this_device(),
                    report=events[place].append,
                    should_stop=stop,
                    seated=seats,
                )
        except Exception as error:
            ended[place] = error

    _in_threads([lambda place=place: work(place) for place in range(len(orders))])
    return ended, events


def _in_threads(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_SECONDS)
        assert not thread.is_alive(), "a training is stuck"
