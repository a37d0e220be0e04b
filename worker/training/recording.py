"""A micro-batch's forward and backward pass as one CUDA graph: recorded once, then replayed.

A step of one sample launches some 2,000 kernels, and on a large GPU that takes longer than to run
them. A replay launches all of them at once. It reads its numbers where the recording found them,
and its dropout masks come from the random state of the moment, as in a step that is not recorded.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from worker.training.batch import Batch

#: Passes before the recording, in which libraries choose their kernels (CUDA's own advice: 3).
_WARM_UP = 3

#: Largest difference of a replayed gradient, as a share of the largest value, that is rounding.
_ROUNDING = 1e-2

#: Runs forward and backward pass of a batch on the device, which counts as the share that the
#: second argument says; returns its share of the loss.
Pass = Callable[[Batch, torch.Tensor], torch.Tensor]


class RecordedPass:
    """Replays a pass for batches of one size and bucket."""

    def __init__(self, run: Pass, batch: Batch, buffer: torch.nn.Parameter, share: float) -> None:
        """Record `run` on the shapes of `batch`, whose gradient lands in `buffer.grad`.

        It is compared at the `share` that a sample has in a full step: with more, gradients in fp16
        may be too large for any comparison.

        Raises:
            RuntimeError: this device or something in the pass cannot be recorded, or the replay is
                not what a pass gives.
        """
        self._batch = replace(batch, indices=batch.indices.clone(), normal=batch.normal.clone())
        self._share = torch.full((), share, device=buffer.device)
        self._buffer = buffer
        buffer.grad = None
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                buffer.grad = None
                torch.manual_seed(0)
                run(self._batch, self._share)
            expected = buffer.grad
        torch.cuda.current_stream().wait_stream(side)
        buffer.grad = None
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread alone: a neighbour may copy its checkpoint from the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = run(self._batch, self._share)
        gradient, buffer.grad = buffer.grad, None
        if gradient is None or expected is None:
            raise RuntimeError("a pass left no gradient")
        self._gradient: torch.Tensor = gradient
        torch.manual_seed(0)
        self._graph.replay()
        difference = (gradient - expected).abs().max().item()
        if not difference <= _ROUNDING * expected.abs().max().item():
            raise RuntimeError(f"a replayed gradient differs by {difference:g}")

    def fits(self, batch: Batch) -> bool:
        """Whether the recording is for batches of this size and bucket."""
        mine = self._batch
        return (batch.indices.shape, batch.bucket) == (mine.indices.shape, mine.bucket)

    def __call__(self, batch: Batch, share: torch.Tensor) -> torch.Tensor:
        """What `run` does, for a batch that fits."""
        self._batch.indices.copy_(batch.indices)
        self._batch.normal.copy_(batch.normal)
        self._share.copy_(share)
        self._graph.replay()
        if self._buffer.grad is None:
            self._buffer.grad = self._gradient.clone()  # the next replay writes over it
        else:
            self._buffer.grad += self._gradient
        return self._loss.clone()
