"""One job on several devices: a process each, which all make the same steps.

The first one speaks with the supervisor, decides and writes files; the others do as it says. All
hold the same adapter, each passes its share of a step's micro-batches, and their gradients are
added up once a step. What a sample is does not depend on who passes it, so the result is that of
one process with the same micro-batches, but for the order of additions.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from worker.training.device import this_device

#: Longest time that a process waits for the gradients of the others, seconds.
_STEP_SECONDS = 600.0

#: Longest time that it waits for word of the first one, which may be idle for long, days.
_IDLE_DAYS = 365

#: Exit status where another process of the training is gone.
_EXIT_PARTED = 1

_T = TypeVar("_T")


class Ranks:
    """The processes of a training as one of them sees them. Alone, nothing here costs anything.

    Attributes:
        index: which one this is; the first is 0. count: how many there are.
    """

    def __init__(self, index: int = 0, count: int = 1, words: Any = None) -> None:
        """Take the place among processes that have joined, and the group that carries words."""
        self.index, self.count, self._words = index, count, words

    @property
    def is_first(self) -> bool:
        """Whether this process decides, speaks and writes."""
        return self.index == 0

    def share(self, batches: Sequence[_T]) -> list[tuple[int, _T]]:
        """This process's part of a step, each with its number in the step."""
        return list(enumerate(batches))[self.index :: self.count]

    def from_first(self, word: _T) -> _T:
        """What the first process gives here, in all of them."""
        if self.count == 1:
            return word
        words = [word]
        _or_end(lambda: distributed.broadcast_object_list(words, src=0, group=self._words))
        return words[0]

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        return self._over_all(number, distributed.ReduceOp.MIN)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside has memory enough everywhere or nowhere.

        Raises:
            torch.OutOfMemoryError: this or another process ran out of memory.
        """
        if self.count == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        too_large = isinstance(failed, torch.OutOfMemoryError)
        if self._over_all(int(too_large), distributed.ReduceOp.MAX) and not too_large:
            raise torch.OutOfMemoryError("another process ran out of memory")
        if failed is not None:
            raise failed

    def add_up(self, weights: torch.nn.Parameter, loss: torch.Tensor) -> torch.Tensor:
        """Add the gradients of all processes, in place, and their parts of the loss."""
        if self.count == 1:
            return loss
        gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
        sums = torch.cat([gradient, loss.to(gradient.dtype).view(1)])
        _or_end(lambda: distributed.all_reduce(sums))
        weights.grad = sums[:-1]
        return sums[-1].to(loss.dtype)

    def _over_all(self, number: int, how: Any) -> int:
        if self.count == 1:
            return number
        numbers = torch.tensor([number])
        _or_end(lambda: distributed.all_reduce(numbers, op=how, group=self._words))
        return int(numbers)


#: A training in one process.
ALONE = Ranks()


def join() -> Ranks:
    """Meet the other processes that Accelerate's launcher has started; alone if it has not.

    Words go over the CPU, so that they never wait for a GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    device = this_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=_STEP_SECONDS)
    )
    words = distributed.new_group(backend="gloo", timeout=timedelta(days=_IDLE_DAYS))
    return Ranks(distributed.get_rank(), count, words)


def _or_end(exchange: Callable[[], object]) -> None:
    """Exchange something; where another process is gone, this one ends: the job is tried again."""
    try:
        exchange()
    except RuntimeError as error:
        sys.stderr.write(f"another process of this training is gone: {error}\n")
        sys.stderr.flush()
        os._exit(_EXIT_PARTED)
