"""Where do the parts of a picture lie that are trained on? In the middle, or drawn at random."""

import torch

from worker.training.framing import Framing
from worker.training.sampler import generator

#: The middle, as a share of the way that a part can be moved.
_MIDDLE = 0.5


def places(framing: Framing, index: int) -> tuple[float, ...]:
    """Where the parts of picture `index` lie, 0 … 1 of the way that they can be moved.

    One lies in the middle. Of several, each lies at random in a stretch of its own, so that
    they cover the picture.
    """
    if framing.crops == 1:
        return (_MIDDLE,)
    random = torch.rand(framing.crops, generator=generator(framing.seed, "crops", index))
    return tuple((k + float(one)) / framing.crops for k, one in enumerate(random))
