"""In which orders are the tags of a caption trained? A few, drawn once, so that they can be cached.

Shuffled tags keep a model from learning where a tag stands instead of what it means.
"""

import math

import torch

from worker.training.sampler import generator

#: Most orders of one caption, the one that was sent included. Each is shown once in as many passes.
MOST_ORDERS = 8

#: Texts that all orders of a job's captions may be, and bytes that these may take: their embeddings
#: stay on the device.
_MOST_TEXTS, _MOST_BYTES = 2048, 2**30


def orders_each(captions: int, text_bytes: int) -> int:
    """How many orders each of so many captions may have; 2 at least, or nothing were shuffled.

    Args:
        captions: distinct ones.
        text_bytes: what the embedding of one takes.
    """
    texts = min(_MOST_TEXTS, _MOST_BYTES // text_bytes)
    return max(2, min(MOST_ORDERS, texts // max(1, captions)))


def caption_orders(caption: str, *, seed: int, kept: int, most: int) -> tuple[str, ...]:
    """The caption as it is, then other orders of its comma-separated tags, all distinct.

    Args:
        caption: tags, separated by commas; without one there is nothing to shuffle.
        seed: the job's.
        kept: tags at the beginning that stay there.
        most: orders at most; fewer tags have fewer.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    head, tail = tags[:kept], tags[kept:]
    source = generator(seed, "tags", int.from_bytes(caption.encode(), "big"))
    orders = {tuple(range(len(tail))): caption}
    while len(orders) < min(most, math.factorial(min(len(tail), most))):
        order = tuple(torch.randperm(len(tail), generator=source).tolist())
        orders.setdefault(order, ", ".join([*head, *(tail[place] for place in order)]))
    return tuple(dict.fromkeys(orders.values()))
