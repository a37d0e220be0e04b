"""Where do the matrices of several jobs lie for a shared pass? A row of one tensor for each job.

A row is laid out as a job's own buffer, for the largest rank of the pass: all A matrices `[R, in]`,
then all B matrices `[out, R]`. What a smaller rank does not fill is zero, and nothing is ever
written there; its gradient is not looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from worker.training.low_rank import LowRankArithmetic


@dataclass(frozen=True)
class Shape:
    """Layers with one input of so many values, and how many values each of them gives."""

    layers: int
    inputs: int
    outputs: tuple[int, ...]


class Rows:
    """The rows of the jobs of one pass; their gradients come back through them."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = shapes
        self._width_a = sum(shape.layers * shape.inputs for shape in shapes)
        self._width_b = sum(sum(shape.outputs) for shape in shapes)
        self._rank = 0
        self._rows: torch.Tensor | None = None
        self._places: dict[int, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._filled.device

    @property
    def _filled(self) -> torch.Tensor:
        if self._rows is None:
            raise ValueError("there are no rows before they are filled")
        return self._rows

    @torch.no_grad()
    def fill(self, jobs: Sequence[LowRankArithmetic], dtype: torch.dtype) -> None:
        """Write each job's matrices, as its own products would have them, into its row."""
        rank = max(job.rank for job in jobs)
        shape = (len(jobs), rank * (self._width_a + self._width_b))
        rows, device = self._rows, jobs[0].buffer.device
        if rows is None or (rows.shape, rows.dtype, self._rank) != (shape, dtype, rank):
            self._rows = rows = None  # freed before there are new ones
            self._rows = rows = torch.zeros(shape, dtype=dtype, device=device)
            if self._rank != rank:
                self._rank, self._places = rank, {}  # as large as adapters: kept while they serve
        rows.requires_grad_(False).grad = None
        for row, job in zip(rows, jobs, strict=True):
            flat, size = job.buffer.detach(), job.size_a
            times = job.scale / (1 - job.dropped)
            if job.rank == rank:
                row[:size].copy_(flat[:size])
                torch.mul(flat[size:], times, out=row[size:])
            else:
                places = self._places_of(job.rank)
                row.zero_()  # it may have been that of a larger rank
                row.index_copy_(0, places[:size], flat[:size].to(dtype))
                row.index_copy_(0, places[size:], (flat[size:] * times).to(dtype))
        rows.requires_grad_()

    def matrices(self) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """For each group `[J, n * R, in]`, and `[J, out, R]` for each of its layers."""
        rank, jobs = self._rank, len(self._filled)
        sizes_a = [shape.layers * shape.inputs * rank for shape in self._shapes]
        sizes_b = [outputs * rank for shape in self._shapes for outputs in shape.outputs]
        parts = torch.split(self._filled, sizes_a + sizes_b, dim=1)
        second = iter(parts[len(sizes_a) :])
        for shape, first in zip(self._shapes, parts, strict=False):
            yield (
                first.view(jobs, -1, shape.inputs),
                [next(second).view(jobs, outputs, rank) for outputs in shape.outputs],
            )

    @torch.no_grad()
    def gradient(self, place: int, job: LowRankArithmetic) -> torch.Tensor:
        """The gradient of one job's buffer `[P]`."""
        whole = self._filled.grad
        if whole is None:
            raise ValueError("the pass left no gradient")
        row, size = whole[place], job.size_a
        if job.rank != self._rank:
            row = row.index_select(0, self._places_of(job.rank))
        gradient = torch.empty_like(job.buffer)
        gradient[:size].copy_(row[:size])
        times = job.scale / (1 - job.dropped)
        torch.mul(row[size:].to(gradient.dtype), times, out=gradient[size:])
        return gradient

    def let_go(self) -> None:
        """Free the gradients."""
        if self._rows is not None:
            self._rows.grad = None

    def _places_of(self, rank: int) -> torch.Tensor:
        """Where in a row each element of a buffer of a smaller rank lies, `[P]`."""
        if rank not in self._places:
            device, largest = self._filled.device, self._rank
            sizes = [largest * self._width_a, largest * self._width_b]
            first, second = torch.split(torch.arange(sum(sizes), device=device), sizes)
            inputs = [shape.inputs for shape in self._shapes for _ in range(shape.layers)]
            outputs = [outputs for shape in self._shapes for outputs in shape.outputs]
            self._places[rank] = torch.cat(
                [
                    *(
                        part.view(largest, -1)[:rank].flatten()
                        for part in torch.split(first, [largest * width for width in inputs])
                    ),
                    *(
                        part.view(-1, largest)[:, :rank].flatten()
                        for part in torch.split(second, [largest * width for width in outputs])
                    ),
                ]
            )
        return self._places[rank]
