"""Which words does a picture get? The sender's, those beside it, or the template's."""

import re

from worker.contract.dataset import CaptionSource

#: Longest caption that a picture is trained with, and that a message may give it, characters.
MAX_CAPTION = 4000

#: Stands for the trigger word in any caption.
PLACEHOLDER = "[trigger]"


def with_trigger(caption: str, trigger_word: str | None) -> str:
    """`caption` with the trigger word where `[trigger]` stands.

    Without a trigger word the placeholder goes, and what it leaves behind: doubled blanks, a comma
    with no tag before it. A caption without a placeholder is as it was.
    """
    if PLACEHOLDER not in caption:
        return caption
    if trigger_word:
        return caption.replace(PLACEHOLDER, trigger_word)
    words = " ".join(caption.replace(PLACEHOLDER, " ").split())
    return re.sub(r"(\s*,)+", ",", words).strip(", ")


def filled_template(template: str | None, trigger_word: str | None, tags: tuple[str, ...]) -> str:
    """The caption of a picture that has none of its own; empty without trigger word and tags.

    Each step is cut at `MAX_CAPTION` characters: a template may name the tags, and these the
    trigger word, so often that together they would be gigabytes.
    """
    words = ", ".join(tag for tag in tags if tag)[:MAX_CAPTION]
    if not template:
        return ", ".join(part for part in (trigger_word, words) if part)[:MAX_CAPTION]
    filled = template.replace("{trigger}", trigger_word or "").replace("{tags}", words)
    spoken = with_trigger(filled[:MAX_CAPTION], trigger_word)
    return " ".join(spoken.split())[:MAX_CAPTION]


def chosen_caption(
    *, message: str | None, file: str | None, template: str, trigger_word: str | None
) -> tuple[str, CaptionSource]:
    """The first caption that exists, its placeholder filled, and where it comes from.

    What is beyond `MAX_CAPTION` characters is cut off, so that a message can give it again.

    Args:
        message: what the sender says of the picture.
        file: what the `.txt` beside it says.
        template: filled already; empty where there is none.
        trigger_word: the word that calls the style.
    """
    if message is not None:
        return with_trigger(message, trigger_word)[:MAX_CAPTION], "message"
    if file is not None:
        return with_trigger(file, trigger_word)[:MAX_CAPTION], "file"
    return template[:MAX_CAPTION], "template" if template else "none"
