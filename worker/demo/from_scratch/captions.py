"""What a scene is called in training: its caption, in other words each time that it is seen."""

import random

from worker.demo.scenes import Scene, caption_of

#: What may stand before a caption and says nothing.
_OPENINGS = ("a drawing of", "a painting of", "a picture of", "an image of")

#: Shares of captions with an opening, with a name that means nothing, and of empty ones.
OPENED, NAMED, EMPTY = 0.3, 0.15, 0.1

_SYLLABLES = ("ba", "dri", "ko", "lu", "mer", "nish", "or", "pla", "sti", "tu", "vex", "zon")


def training_caption(scene: Scene, rng: random.Random) -> str:
    """A true caption; every tenth one is empty, so that pictures can be led away from it.

    Names without a meaning are among them ("in the style of lumer"), so that the model goes on
    drawing what else is said when it is given a word that it does not know.
    """
    if rng.random() < EMPTY:
        return ""
    caption = caption_of(scene, rng)
    if rng.random() < OPENED:
        caption = f"{rng.choice(_OPENINGS)} {caption}"
    if rng.random() < NAMED:
        name = "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3)))
        caption = rng.choice(
            (f"{caption} in the style of {name}", f"{caption}, {name} style", f"{name}, {caption}")
        )
    return caption
