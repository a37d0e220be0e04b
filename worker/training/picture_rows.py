"""What is there to say of each picture? A row each, with a small picture for the report."""

from pathlib import Path

from worker.contract.dataset import PictureReport
from worker.training.decoding import decode_square, opened
from worker.training.images import BadPicture, Picture, Pictures

#: Side of a thumbnail, pixels.
_SIDE = 160


def picture_rows(pictures: Pictures, thumbnails: Path) -> list[PictureReport]:
    """The rows of all pictures in the job's order; thumbnails go to a folder that exists."""
    first: dict[str, int] = {}
    for picture in pictures.good:
        first.setdefault(picture.sha256, picture.file.index)
    rows = [_used(picture, first[picture.sha256], thumbnails) for picture in pictures.good]
    return sorted([*rows, *map(_left_out, pictures.bad)], key=lambda row: row.index)


def _used(picture: Picture, first: int, thumbnails: Path) -> PictureReport:
    duplicate = first != picture.file.index
    path = thumbnails / f"{picture.file.index:06d}.jpg"
    with opened(picture.file.path) as image:
        small, _ = decode_square(image, _SIDE)
    small.info = {}
    small.save(path, "JPEG", quality=80)
    return PictureReport(
        index=picture.file.index,
        source=picture.file.source,
        sha256=picture.sha256,
        bytes=Path(picture.file.path).stat().st_size,
        width=picture.width,
        height=picture.height,
        warnings=("duplicate",) if duplicate else (),
        caption=picture.file.caption,
        duplicate_of=first if duplicate else None,
        thumbnail=path.name,
    )


def _left_out(bad: BadPicture) -> PictureReport:
    return PictureReport(
        index=bad.file.index,
        source=bad.file.source,
        reason=bad.reason,
        caption=bad.file.caption,
    )
