"""What is there to say of each picture? The rows of the report, and what of them is logged."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from worker.contract.dataset import PictureReport, Remark
from worker.contract.pipe import LogEvent
from worker.training.appearance import BLURRED_BELOW, NEAR, difference
from worker.training.images import BadPicture, Picture, Pictures, thumbnail_name

#: Pictures that a log line names.
_NAMED = 5

#: Said of each picture with a line of its own, the others of all pictures at once.
_ONE_BY_ONE = ("duplicate",)


def picture_reports(
    pictures: Pictures,
    *,
    count_tokens: Callable[[str], int],
    most_tokens: int,
    thumbnails: Path | None = None,
) -> list[PictureReport]:
    """One row a picture, used or left out, in the job's order.

    Args:
        pictures: all of them read.
        count_tokens: the tokens of a caption, with start and end.
        most_tokens: how many the text encoder takes; the rest is cut off.
        thumbnails: the folder that `pictures` wrote thumbnails to.
    """
    rows = [_left_out(one) for one in pictures.bad]
    for number, picture in enumerate(pictures.good):
        original, exact = _original(picture, pictures.good[:number])
        tokens = count_tokens(picture.file.caption)
        kind: Remark = "duplicate" if exact else "near_duplicate"
        warnings: dict[Remark, bool] = {
            kind: original is not None,
            "upscaled": "upscaled" in picture.changes,
            "blurred": picture.sharpness < BLURRED_BELOW,
            "caption_too_long": tokens > most_tokens,
            "no_caption": not picture.file.caption,
        }
        name = thumbnail_name(picture.file)
        rows.append(
            PictureReport(
                index=picture.file.index,
                source=picture.file.source,
                sha256=picture.sha256,
                format=picture.format,
                bytes=picture.bytes,
                width=picture.width,
                height=picture.height,
                changes=picture.changes,
                warnings=tuple(warning for warning, holds in warnings.items() if holds),
                caption=picture.file.caption,
                caption_source=picture.file.caption_source,
                caption_tokens=tokens,
                sharpness=round(picture.sharpness, 1),
                duplicate_of=None if original is None else original.file.index,
                thumbnail=name if thumbnails and (thumbnails / name).exists() else None,
            )
        )
    return sorted(rows, key=lambda row: row.index)


def doubled(rows: Sequence[PictureReport]) -> Collection[int]:
    """Places, among the usable pictures, of those of which there is another one."""
    indices = {row.duplicate_of for row in rows} | {
        row.index for row in rows if row.duplicate_of is not None
    }
    used = [row for row in rows if row.reason is None]
    return {place for place, row in enumerate(used) if row.index in indices}


def log_events(rows: Sequence[PictureReport]) -> Iterator[LogEvent]:
    """Warnings: of each picture that is left out or there twice, and of other flaws in sum."""
    source = {row.index: row.source for row in rows}
    for row in rows:
        if row.reason is not None:
            fields = {"index": row.index, "source": row.source, "reason": row.reason}
            yield LogEvent(level="warning", event="picture_left_out", fields=fields)
        if "duplicate" in row.warnings and row.duplicate_of is not None:
            same = {"source": row.source, "same_as": source[row.duplicate_of]}
            yield LogEvent(level="warning", event="picture_is_a_duplicate", fields=same)
    found = Counter(warning for row in rows for warning in row.warnings)
    for warning, count in sorted(found.items()):
        if warning not in _ONE_BY_ONE:
            named = [row.source for row in rows if warning in row.warnings][:_NAMED]
            about = {"warning": warning, "pictures": count, "sources": named}
            yield LogEvent(level="warning", event="pictures_to_look_at", fields=about)


def _left_out(bad: BadPicture) -> PictureReport:
    return PictureReport(
        index=bad.file.index,
        source=bad.file.source,
        reason=bad.reason,
        caption=bad.file.caption,
        caption_source=bad.file.caption_source,
    )


def _original(picture: Picture, earlier: Sequence[Picture]) -> tuple[Picture | None, bool]:
    """The first picture that this one equals (True) or else resembles (False)."""
    for other in earlier:
        if other.sha256 == picture.sha256:
            return other, True
    for other in earlier:
        if difference(other.marks, picture.marks) < NEAR:
            return other, False
    return None, False
