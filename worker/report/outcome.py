"""What came out, in sentences for a person."""

from worker.contract.manifest import Manifest

#: A change of the loss at fixed noise below this share is called none.
_NOTICEABLE = 0.002


def outcome(manifest: Manifest) -> str:
    """Whether it has learned, from the loss at fixed noise; and what was seen of over-fitting."""
    facts = manifest.metadata
    seen = facts.get("validation", {}).get("says")
    if seen:
        return str(seen)
    before, after = facts.get("evaluation_loss_before"), facts.get("evaluation_loss_after")
    if before is None or after is None:
        return "Nothing was measured of how much it has learned."
    change = after / before - 1
    figures = f"from {before:.4g} to {after:.4g} ({_share(change)})"
    if change < -_NOTICEABLE:
        return f"It has learned: the loss at fixed noise fell {figures}."
    if change > _NOTICEABLE:
        return f"It may have learned too fast: the loss at fixed noise rose {figures}."
    return f"It has hardly learned: the loss at fixed noise went {figures}."


def _share(change: float) -> str:
    sign = "+" if change > 0 else "−"
    return f"{sign}{abs(change) * 100:.1f} %"


def pictures_trained_on(manifest: Manifest) -> str:
    """`12`; `8 of 10` where the others were held out."""
    usable = len(manifest.inputs)
    count = manifest.metadata.get("plan", {}).get("pictures", usable)
    return f"{count:,}" if count == usable else f"{count:,} of {usable:,}"


def size_of_training(manifest: Manifest) -> str:
    """`trained on 12 pictures for 1,200 steps in 3 min 20 s`.

    Of a training that was interrupted nobody knows how long all of its steps took.
    """
    steps = manifest.metadata.get("training_steps")
    seconds = manifest.stage_seconds.get("training")
    plural = "" if len(manifest.inputs) == 1 else "s"
    text = f"trained on {pictures_trained_on(manifest)} picture{plural}"
    if steps:
        text += f" for {steps:,} step{'' if steps == 1 else 's'}"
    if seconds is None or manifest.metadata.get("resumed"):
        return text
    return f"{text} in {duration(seconds)}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """`812 B`, `3.1 MB`, `12 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
