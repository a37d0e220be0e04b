"""Which jobs can be trained in one pass? Those whose tensors agree in shape and arithmetic.

What is a job's own number stays its own: pictures, seed, learning rate and schedule, clipping,
length, alpha, dropout, weighting of the loss, accumulation. Ranks are padded to the largest of a
pass, so only those of one class share it.
"""

from collections.abc import Hashable

from worker.contract.base_model import BaseModelEntry
from worker.contract.parameters import TrainingParameters

#: Largest rank of each class: small adapters shall not be padded to many times their size.
_RANK_CLASSES = (64, 128, 256)


def company(parameters: TrainingParameters, base_model: BaseModelEntry) -> Hashable | None:
    """What a job must have in common with those that it shares passes with.

    Two jobs with equal answers can be trained in one trainer at a time, at the cost of little more
    than one. None: a job that is always trained by itself.

    Alone are jobs that train more than the UNet's low-rank matrices (DoRA, the text encoder), that
    have an optimizer which waits for the device or goes weight by weight (all but `adamw`), those
    whose pictures have several sizes, and those of a base model that is no UNet.
    """
    if (
        parameters.optimizer != "adamw"
        or base_model.family == "sd3"
        or parameters.use_dora
        or parameters.train_text_encoder
        or parameters.aspect_ratio_buckets
    ):
        return None
    return (
        base_model,
        parameters.resolution,
        parameters.mixed_precision,
        parameters.train_batch_size,
        parameters.gradient_checkpointing,
        parameters.with_prior_preservation,
        frozenset(parameters.target_modules),
        next(largest for largest in _RANK_CLASSES if parameters.rank <= largest),
    )
