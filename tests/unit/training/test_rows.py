"""What is kept to fill rows is of the present company."""

from types import SimpleNamespace

import torch

from worker.training.packing.rows import Rows, Shape


def job(rank, shape):
    size_a = rank * shape.layers * shape.inputs
    size = size_a + rank * sum(shape.outputs)
    return SimpleNamespace(
        rank=rank, size_a=size_a, buffer=torch.ones(size), scale=1.0, dropped=0.0
    )


def test_where_smaller_ranks_lie_is_forgotten_with_the_largest_rank():
    shape = Shape(layers=2, inputs=3, outputs=(4, 5))
    rows = Rows([shape])
    for ranks in ([1, 2, 8], [2, 8], [1, 4]):
        rows.fill([job(rank, shape) for rank in ranks], torch.float32)
        kept = sum(places.numel() for places in rows._places.values())
        assert kept == sum(job(rank, shape).buffer.numel() for rank in {*ranks, 1} - {max(ranks)})
