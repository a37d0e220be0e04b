"""Is the worker alive, may it get jobs, what does it do? Asked over HTTP, answered from memory."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from worker import __version__
from worker.jobs.surroundings import Surroundings
from worker.observability import metrics
from worker.observability.activity import Activity
from worker.observability.http_server import Page
from worker.observability.status_page import status_page

#: A broker thread that has not gone round for so long hangs, seconds: longer than its longest
#: wait between two tries and the longest try together.
STUCK_SECONDS = 120.0


class GoesRound(Protocol):
    """A thread of the broker's side."""

    connected: bool

    @property
    def silent_seconds(self) -> float:
        """Time since it last went round; 0 before its start and after its end."""
        ...


class Thread(Protocol):
    """A slot; `ident` is None before its start."""

    name: str

    @property
    def ident(self) -> int | None:
        """Its number."""
        ...

    def is_alive(self) -> bool:
        """Whether it runs."""
        ...


class Trainer(Protocol):
    """A place for a trainer."""

    @property
    def is_up(self) -> bool:
        """Whether one is ready here."""
        ...

    @property
    def jobs_now(self) -> int:
        """Jobs that it trains."""
        ...


@dataclass(frozen=True)
class Health:
    """What the pages are made of.

    Attributes:
        owner: the worker's name in leases.
        consumers: by name; `jobs` is the one that readiness asks for.
        slots: the threads that handle deliveries.
        stopping: whether the worker drains.
        broker_asked: whether the broker was tried; at the start that waits for the store.
        slots_a_trainer: jobs that each trainer may have at a time.
    """

    owner: str
    environment: str
    activity: Activity
    surroundings: Surroundings
    consumers: Mapping[str, GoesRound]
    slots: Sequence[Thread]
    trainers: Sequence[Trainer]
    stopping: Callable[[], bool]
    broker_asked: Callable[[], bool]
    slots_a_trainer: int = 1

    def pages(self) -> dict[str, Callable[[str], Page]]:
        """Path and what is served there; each is given the request's `Accept` header."""
        return {
            "/": lambda _: status_page(),
            "/status": self._status_page,
            "/livez": lambda _: _verdict(self.dead()),
            "/readyz": lambda _: _verdict(self.unready()),
            "/metrics": lambda _: self._metrics_page(),
        }

    def dead(self) -> list[str]:
        """Why the worker should be killed and started anew; depends on no broker and no store."""
        stuck = [
            f"the thread of the broker's {name} hangs"
            for name, consumer in self.consumers.items()
            if consumer.silent_seconds > STUCK_SECONDS
        ]
        if self.stopping():
            return stuck
        ended = [slot.name for slot in self.slots if slot.ident and not slot.is_alive()]
        return stuck + [f"the thread {name} has ended" for name in ended]

    def unready(self) -> list[str]:
        """Why the worker takes no job now."""
        draining = ["the worker is stopping"] if self.stopping() else []
        return draining + [check["detail"] for check in self.checks().values() if not check["ok"]]

    def checks(self) -> dict[str, dict[str, Any]]:
        """What must be there, each with whether it is and one clause."""
        connected = self.consumers["jobs"].connected
        lacking = "cannot be reached" if self.broker_asked() else "has not been asked yet"
        trainer = self._trainers_up()
        problem = self.surroundings.store_problem
        return {
            "broker": {
                "ok": connected,
                "detail": "connected" if connected else f"the broker {lacking}",
            },
            "store": {"ok": not problem, "detail": problem or "answers"},
            "trainer": {"ok": bool(trainer), "detail": trainer or "no trainer is up yet"},
        }

    def status(self) -> dict[str, Any]:
        """All that a person on call wants to know of this worker, as plain values."""
        reasons = self.unready()
        counts = {
            outcome: int(sum(metrics.value_of(metrics.JOBS, outcome=outcome)))
            for outcome in ("completed", "failed", "canceled")
        }
        return {
            "now": time.time(),
            "worker": {
                "owner": self.owner,
                "version": __version__,
                "environment": self.environment,
                "started_at": self.activity.started_at,
                "slots": self._slots(),
                "training": self._training(),
            },
            "ready": not reasons,
            "reasons": reasons,
            "draining": self.stopping(),
            "checks": self.checks(),
            "gpus": [gpu.as_dict() for gpu in self.surroundings.gpus],
            "queues": dict(self.surroundings.messages),
            "counts": counts,
            **self.activity.as_dict(),
        }

    def _trainers_up(self) -> str:
        """How many are up and how many jobs they have, as a clause; empty if none is."""
        up = sum(trainer.is_up for trainer in self.trainers)
        clause = f"{up} of {len(self.trainers)} up" if up else ""
        if clause and self.slots_a_trainer > 1:
            clause += f", {self._training()} of {self._slots()} slots train"
        return clause

    def _slots(self) -> int:
        return len(self.trainers) * self.slots_a_trainer

    def _training(self) -> int:
        return sum(trainer.jobs_now for trainer in self.trainers)

    def _status_page(self, accept: str) -> Page:
        return status_page() if "text/html" in accept else _json(200, self.status())

    def _metrics_page(self) -> Page:
        metrics.READY.set(not self.unready())
        metrics.DRAINING.set(self.stopping())
        metrics.SLOTS.set(self._slots())
        metrics.JOBS_TRAINING.set(self._training())
        metrics.TRAINERS_READY.set(sum(trainer.is_up for trainer in self.trainers))
        return Page(200, metrics.CONTENT_TYPE, metrics.exposition())


def _verdict(problems: list[str]) -> Page:
    return _json(503 if problems else 200, {"ok": not problems, "reasons": problems})


def _json(status: int, value: dict[str, Any]) -> Page:
    # JSON has no NaN, and a browser's parser would choke on one.
    text = json.dumps(_finite(value))
    return Page(status, "application/json", text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
