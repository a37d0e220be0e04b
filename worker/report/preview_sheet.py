"""All previews on one picture: a row a prompt, each seed from before to after."""

from collections.abc import Sequence
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


def draw_sheet(previews: Sequence[Preview], folder: Path, target: Path) -> None:
    """Draw `previews`, whose files lie in `folder`, and save them as PNG to `target`."""
    rows = [(prompt, list(row)) for prompt, row in groupby(previews, key=lambda p: p.prompt)]
    with Image.open(folder / previews[0].after) as first:
        cell = min(_CELL, max(_SMALLEST, *first.size))
    heads = max((_heads(row) for _, row in rows), key=len)
    columns = len(heads)
    width = max(_GAP + columns * (cell + _GAP), 2 * (_CELL + _GAP))
    height = _GAP + _LINE + len(rows) * (_LINE + cell + _GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for column, word in enumerate(heads):
        head = _fitting(word, cell, font)
        pen.text((_GAP + column * (cell + _GAP), _GAP), head, fill=_FAINT, font=font)
    top = _GAP + _LINE
    for prompt, row in rows:
        line = _fitting(prompt or "(no prompt)", width - 2 * _GAP, font)
        pen.text((_GAP, top), line, fill=_INK, font=font)
        for column, name in enumerate(file for preview in row for file in preview.files):
            with Image.open(folder / name) as picture:
                shown = ImageOps.contain(picture.convert("RGB"), (cell, cell))
            sheet.paste(shown, (_GAP + column * (cell + _GAP), top + _LINE))
        top += _LINE + cell + _GAP
    sheet.save(target, "PNG", optimize=True)


def _heads(row: Sequence[Preview]) -> list[str]:
    """What stands above the pictures of a prompt."""
    words = [
        (word, preview.seed)
        for preview in row
        for word in ("before", *(f"step {picture.step:,}" for picture in preview.along), "after")
    ]
    return [f"{word} · seed {seed}" if len(row) > 1 else word for word, seed in words]


def _fitting(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """`text` on one line, cut off where it is too long."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
