"""All previews on one picture: a row a prompt, each seed from before to after."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from worker.contract.manifest import Preview

#: Largest and smallest side of a cell, room between cells and for a line of text, pixels.
_CELL, _SMALLEST = 256, 128
_GAP = 12
_LINE = 24
_TEXT = 14

_PAPER, _INK, _FAINT = "#ffffff", "#1d1d1b", "#6f6f69"

#: What stands in one column: a seed, and the step that its pictures were drawn at.
_Column = tuple[int, float]

#: Places of the base model alone and of the finished adapter among the steps.
_BEFORE, _AFTER = -1.0, math.inf


def draw_sheet(previews: Sequence[Preview], folder: Path, target: Path) -> None:
    """Draw `previews`, whose files lie in `folder`, and save them as PNG to `target`.

    Each picture stands below its own heading. A row without a picture there has a blank.
    """
    rows = [(prompt, list(row)) for prompt, row in groupby(previews, key=lambda p: p.prompt)]
    with Image.open(folder / previews[0].after) as first:
        cell = min(_CELL, max(_SMALLEST, *first.size))
    several = any(len(row) > 1 for _, row in rows)
    columns = sorted({column for preview in previews for column, _ in _cells(preview, several)})
    lefts = {column: _GAP + place * (cell + _GAP) for place, column in enumerate(columns)}
    width = max(_GAP + len(columns) * (cell + _GAP), 2 * (_CELL + _GAP))
    height = _GAP + _LINE + len(rows) * (_LINE + cell + _GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for column, left in lefts.items():
        head = _fitting(_head(column, several), cell, font)
        pen.text((left, _GAP), head, fill=_FAINT, font=font)
    top = _GAP + _LINE
    for prompt, row in rows:
        line = _fitting(prompt or "(no prompt)", width - 2 * _GAP, font)
        pen.text((_GAP, top), line, fill=_INK, font=font)
        for column, name in (found for preview in row for found in _cells(preview, several)):
            with Image.open(folder / name) as picture:
                shown = ImageOps.contain(picture.convert("RGB"), (cell, cell))
            sheet.paste(shown, (lefts[column], top + _LINE))
        top += _LINE + cell + _GAP
    sheet.save(target, "PNG", optimize=True)


def _cells(preview: Preview, several: bool) -> Iterator[tuple[_Column, str]]:
    """The column of each picture; seeds have their own where some prompt has `several`."""
    seed = preview.seed if several else 0
    yield (seed, _BEFORE), preview.before
    for picture in preview.along:
        yield (seed, picture.step), picture.file
    yield (seed, _AFTER), preview.after


def _head(column: _Column, several: bool) -> str:
    """What stands above a column."""
    seed, step = column
    word = {_BEFORE: "before", _AFTER: "after"}.get(step) or f"step {step:,}"
    return f"{word} · seed {seed}" if several else word


def _fitting(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """`text` on one line, cut off where it is too long."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
