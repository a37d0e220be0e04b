"""Which points does a whole job pass? Found by running one, so that none can be forgotten."""

import re
from dataclasses import dataclass

from tests.faults.failpoints import Process, points_passed
from tests.faults.scene import Lab, Scene, scene

#: Process, name, number.
Point = tuple[Process, str, int]

#: Points whose number depends on the clock: those that every job surely passes.
_SURE = {
    "store.write lease": 2,
    "store.read cancel": 1,
    "store.read lease": 2,
    "store.read result": 2,
    "webhook progress": 2,
    "store.read checkpoint": 3,
    r".* checkpoint-file": 2,
    r"store\.write checkpoint": 2,
    r"checkpoint-.*": 2,
    "say checkpoint": 2,
    r"store\.\w+ probe": 0,
}

#: What a job of the campaign is: two pictures, so that something is done for each.
STEPS = 8


def publish_job(played: Scene, **changes: object) -> str:
    """The job whose every point is tried."""
    body = played.real.picture if played.real else b"a picture"
    steps = played.real.steps if played.real else STEPS
    pictures = [played.site.put_picture(f"training/{name}.jpg", body) for name in "ab"]
    parameters = {"max_train_steps": steps, "seed": 7, "mixed_precision": "no"}
    return played.publish(image_urls=pictures, parameters=parameters, **changes)


@dataclass(frozen=True)
class Traced:
    """An undisturbed job: every point that it passed, in order, and its adapter."""

    points: tuple[Point, ...]
    adapter_sha256: str
    adapter: bytes


def trace(lab: Lab) -> Traced:
    """Run a job that nothing disturbs."""
    with scene(lab) as played:
        publish_job(played)
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        if not counts.clean:
            raise AssertionError(f"an undisturbed job is not clean: {counts.findings}")
        passed = points_passed(played.site.folder)
        [(digest, adapter)] = played.adapters(played.site.objects("models/")).items()
    return Traced(tuple(one for one in passed if one[2] <= _sure(one[1], one[2])), digest, adapter)


def has_effect(point: str) -> bool:
    """Whether something outside of the process changes."""
    return not re.match(r"store\.(read|head)", point)


def _sure(point: str, n: int) -> int:
    return next((most for pattern, most in _SURE.items() if re.fullmatch(pattern, point)), n)
