"""Do gradients repeat bit for bit? On a GPU, those of attention do only where torch is strict.

In the deterministic mode that only warns, attention's backward pass adds up in whatever order its
blocks come. In the strict one it keeps to one order, but an operator that cannot do so raises. So
backward passes are strict until one raises; from then on the job says that its bits may differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

#: What is in every error of torch's strict mode.
_STRICT = "use_deterministic_algorithms"

#: Longest reason, in characters.
_REASON = 200

_T = TypeVar("_T")


class _Unrepeatable(Exception):  # noqa: N818 - what was found, in one word
    """An operator of a backward pass has no kernel that repeats."""


@dataclass
class Strictness:
    """Whether backward passes of a job repeat bit for bit.

    Attributes:
        given_up_because: what has no kernel that does; empty while all have.
    """

    given_up_because: str = ""

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside, a backward pass repeats, unless that was given up; for use in `passed`.

        The mode is the whole process's. Where it is not deterministic at all, it is left alone.
        """
        if self.given_up_because or not torch.are_deterministic_algorithms_enabled():
            yield
            return
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(mode=True, warn_only=False)
        try:
            yield
        except RuntimeError as error:
            if _STRICT not in str(error):
                raise
            raise _Unrepeatable(str(error).partition(", but you set")[0][:_REASON]) from error
        finally:
            torch.use_deterministic_algorithms(mode=True, warn_only=warn_only)


def passed(make: Callable[[], _T], *jobs: Strictness) -> _T:
    """What `make` gives: a forward and a backward pass of `jobs`, whose random state it sets.

    It is made once more where it cannot be had strictly; no gradient has been added to until then.
    """
    try:
        return make()
    except _Unrepeatable as error:
        reason = str(error)  # the frames of the error itself hold the memory of the pass
    for job in jobs:
        job.given_up_because = reason
    return make()
