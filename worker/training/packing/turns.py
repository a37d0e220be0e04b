"""Which jobs may be in a trainer together? Those that can share passes; all others take turns."""

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from worker.training.baton import Baton
from worker.training.seat import ShouldStop, StageReport, waiting

#: How often somebody who waits looks whether to stop, seconds.
_TICK_SECONDS = 0.1


class Turns:
    """Lets jobs of one company in together, in the order in which they came.

    For threads that hold the baton, which guards what is kept here.
    """

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._left = threading.Condition()
        self._waiting: deque[object] = deque()
        self._inside: list[Hashable | None] = []

    @contextmanager
    def turn(
        self, company: Hashable | None, report: StageReport, should_stop: ShouldStop
    ) -> Iterator[bool]:
        """Be inside with nobody but one's company; with nobody at all if that is None.

        Who is to stop is let in at once: it does nothing any more. Yields whether nobody else is
        inside.
        """
        me = object()
        self._waiting.append(me)
        if not self._is_next(me, company):
            with waiting(report, inside=len(self._inside)):
                while not (self._is_next(me, company) or should_stop()):
                    with self._baton.laid_down(), self._left:
                        self._left.wait(_TICK_SECONDS)
        self._waiting.remove(me)
        self._inside.append(company)
        try:
            yield len(self._inside) == 1
        finally:
            self._inside.remove(company)
            with self._left:
                self._left.notify_all()

    def _is_next(self, me: object, company: Hashable | None) -> bool:
        if self._waiting[0] is not me:
            return False
        return not self._inside or (company is not None and set(self._inside) == {company})
