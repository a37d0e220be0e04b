"""What stands in the documentation: pages, fenced blocks, links, words in code."""

import re
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]

#: Every page that a person reads.
PAGES = sorted(
    path.relative_to(TOP).as_posix()
    for path in (*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("examples/**/*.md"))
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<text>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: where, in which language, and its text without the indentation."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    """A page's text."""
    return (TOP / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order; those of one language if given."""
    text, found = read(page), []
    for match in _FENCE.finditer(text):
        lines = [
            line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True)
        ]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], "".join(lines)))
    return [block for block in found if language in (None, block.language)]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def spans(page: str) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]
