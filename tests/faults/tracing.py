"""Which points does a whole job pass? Found by running one, so that none can be forgotten."""

import re

from tests.faults.failpoints import points_passed
from tests.faults.scene import Lab, Scene, scene

Point = tuple[str, str, int]

#: Points whose number depends on the clock: those that every job surely passes.
_SURE = {
    "store.write lease": 2,
    "store.read cancel": 1,
    "store.read lease": 2,
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
    pictures = [played.site.put_picture(f"training/{name}.jpg") for name in "ab"]
    return played.publish(image_urls=pictures, parameters={"max_train_steps": STEPS}, **changes)


def trace(lab: Lab) -> list[Point]:
    """Process, name and number of every point of an undisturbed job, in order."""
    with scene(lab) as played:
        publish_job(played)
        played.start()
        played.wait_for_ends()
        counts = played.finish()
        if not counts.clean:
            raise AssertionError(f"an undisturbed job is not clean: {counts.findings}")
        passed = points_passed(played.site.folder)
    return [(process, point, n) for process, point, n in passed if n <= _sure(point, n)]


def has_effect(point: str) -> bool:
    """Whether something outside of the process changes."""
    return not re.match(r"store\.(read|head)", point)


def _sure(point: str, n: int) -> int:
    return next((most for pattern, most in _SURE.items() if re.fullmatch(pattern, point)), n)
