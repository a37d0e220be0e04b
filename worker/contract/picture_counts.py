"""Are there pictures for what a job asks, and is what it sends asked for?"""

from collections.abc import Iterator

from worker.contract.combinations import OF_PRIOR, Conflict
from worker.contract.parameters import TrainingParameters, held_out_count


def picture_conflicts(
    rules: TrainingParameters, pictures: int, class_pictures: int
) -> list[Conflict]:
    """What of `rules` cannot be with so many pictures, and so many of the class."""
    return [*_too_few(rules, pictures), *_for_nothing(rules, class_pictures)]


def _too_few(rules: TrainingParameters, given: int) -> Iterator[Conflict]:
    if rules.validation_split and given == 1:
        yield "parameters.validation_split", "holds out pictures, and there is 1; send 2"
        return
    held_out = held_out_count(rules.validation_split, given)
    if rules.train_batch_size > given - held_out:
        of_them = f", of which {held_out} are held out" if held_out else ""
        found = (
            f"is {rules.train_batch_size} with {given} pictures{of_them}; send at most that many"
        )
        yield "parameters.train_batch_size", found


def _for_nothing(rules: TrainingParameters, given: int) -> Iterator[Conflict]:
    """What is said of the class and would have no effect."""
    if not given:
        return
    if not rules.with_prior_preservation:
        yield (
            "class_images",
            "are for parameters.with_prior_preservation, which is false; send it as true, or no "
            "class_images",
        )
    elif rules.num_class_images not in (OF_PRIOR["num_class_images"], given):
        yield (
            "parameters.num_class_images",
            "is how many pictures the base model draws, and the message brings class_images; send "
            "one of them",
        )
