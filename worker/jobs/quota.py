"""How many jobs may this run of the worker still begin? Reserved before a slot looks for one."""

import threading


class JobQuota:
    """Counts the jobs of a worker that was started for a few of them.

    A slot reserves a job before it looks for a message, so that no message is taken that would have
    to be given back. What turns out to be no job (parked, ended already, refused) is given back.

    Args:
        jobs: how many may be begun; no bound if None.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._reserved = self._begun = 0

    def reserve(self) -> bool:
        """Set one job aside; False if none is left."""
        with self._lock:
            if self._jobs is not None and self._reserved + self._begun >= self._jobs:
                return False
            self._reserved += 1
            return True

    def give_back(self) -> None:
        """A reserved job did not come about."""
        with self._lock:
            self._reserved -= 1

    def begin(self) -> None:
        """A reserved job is claimed; it counts whatever becomes of it."""
        with self._lock:
            self._reserved -= 1
            self._begun += 1

    @property
    def used_up(self) -> bool:
        """All of them were begun."""
        with self._lock:
            return self._jobs is not None and self._begun >= self._jobs
