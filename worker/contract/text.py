"""How is a stranger's text shown? On one line, without control characters, and not without end."""


def printable(text: str, most: int) -> str:
    """`text` with what cannot be printed as escapes, at most `most` characters of it.

    A terminal obeys escape sequences, a line break forges a line of a log, and half of a surrogate
    pair cannot be written as UTF-8 at all.
    """
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    if short.isprintable():
        return short
    shown = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in short
    )
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
