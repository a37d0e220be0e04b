"""One row a picture: what it is, what was done to it, what a person should look at."""

import pytest
from PIL import Image, ImageFilter

from tests.fixtures.drawn_pictures import draw_pictures
from worker.contract.dataset import counts
from worker.contract.pipe import ImageFile
from worker.training.dataset_report import doubled, log_events, picture_reports
from worker.training.images import Pictures


@pytest.fixture
def drawing(tmp_path):
    [path] = draw_pictures(tmp_path / "drawn", 1, size=128)
    return Image.open(path).convert("RGB")


class Folder:
    """Files of a job that is being put together."""

    def __init__(self, path):
        self.path, self.files = path, []

    def add(self, image, name, caption="a fox", source="message", **options):
        path = self.path / name
        image.save(path, **options) if isinstance(image, Image.Image) else path.write_bytes(image)
        self.files.append(
            ImageFile(
                index=len(self.files),
                path=str(path),
                source=f"s3://b/{name}",
                caption=caption,
                caption_source=source,
            )
        )

    def rows(self, resolution=64):
        thumbnails = self.path / "thumbnails"
        thumbnails.mkdir()
        pictures = Pictures(self.files, resolution, "skip", thumbnails=thumbnails)
        list(pictures)
        return picture_reports(
            pictures,
            count_tokens=lambda text: len(text.split()) + 2,
            most_tokens=77,
            thumbnails=thumbnails,
        )


def test_a_plain_picture_has_no_changes_and_no_warnings(tmp_path, drawing):
    folder = Folder(tmp_path)
    folder.add(drawing, "a.png", source="file")
    [row] = folder.rows()
    assert (row.format, row.width, row.height) == ("PNG", 128, 128)
    assert row.bytes == (tmp_path / "a.png").stat().st_size
    assert len(row.sha256) == 64
    assert (row.changes, row.warnings, row.duplicate_of) == ((), (), None)
    assert (row.caption, row.caption_source, row.caption_tokens) == ("a fox", "file", 4)
    assert row.sharpness > 100
    assert row.thumbnail == "000000.jpg"
    with Image.open(tmp_path / "thumbnails" / row.thumbnail) as thumbnail:
        assert thumbnail.size == (128, 128)


def test_what_was_done_to_a_picture_is_said(tmp_path, drawing):
    folder = Folder(tmp_path)
    exif = drawing.getexif()
    exif[0x0112] = 6
    frames = [drawing.quantize(), drawing.rotate(90).quantize()]
    folder.add(drawing, "turned.jpg", exif=exif)
    folder.add(drawing, "turned.tiff", exif=exif)
    folder.add(drawing.convert("CMYK"), "printed.jpg")
    folder.add(Image.new("I;16", (128, 128), 9), "scan.png")
    folder.add(frames[0], "moves.gif", save_all=True, append_images=frames[1:])
    folder.add(drawing.crop((0, 0, 128, 100)), "wide.png")
    folder.add(drawing.resize((50, 50)), "small.png")
    assert [row.changes for row in folder.rows()] == [
        ("rotated",),
        ("rotated",),
        ("converted",),
        ("converted",),
        ("converted", "first_frame"),
        ("cropped",),
        ("upscaled",),
    ]


def test_what_a_person_should_look_at_is_said(tmp_path, drawing):
    folder = Folder(tmp_path)
    turned = drawing.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    folder.add(drawing, "a.png")
    folder.add(drawing, "a again.png")
    folder.add(drawing, "a compressed.jpg", quality=60)
    folder.add(turned.filter(ImageFilter.GaussianBlur(5)), "blurred.png")
    folder.add(drawing.rotate(90).resize((40, 40)), "small.png")
    folder.add(drawing.rotate(90), "long.png", caption="word " * 80)
    folder.add(drawing.rotate(180), "no words.png", caption="", source="none")
    folder.add(b"no picture", "bad.png")
    rows = folder.rows()
    assert [row.warnings for row in rows] == [
        (),
        ("duplicate",),
        ("near_duplicate",),
        ("blurred",),
        ("upscaled",),
        ("near_duplicate", "caption_too_long"),
        ("no_caption",),
        (),
    ]
    assert [row.duplicate_of for row in rows] == [None, 0, 0, None, None, 4, None, None]
    assert "not a picture" in rows[-1].reason
    assert counts(rows) == {
        **{"pictures": 8, "used": 7, "left_out": 1},
        **{"blurred": 1, "caption_too_long": 1, "duplicate": 1},
        **{"near_duplicate": 2, "no_caption": 1, "upscaled": 1},
    }
    assert doubled(rows) == {0, 1, 2, 4, 5}


def test_the_log_names_what_is_left_out_and_counts_the_rest(tmp_path, drawing):
    folder = Folder(tmp_path)
    folder.add(b"no picture", "bad.png")
    for number in range(7):
        folder.add(drawing, f"{number}.png", caption="")
    events = list(log_events(folder.rows()))
    assert {event.level for event in events} == {"warning"}
    assert [event.event for event in events] == [
        "picture_left_out",
        *["picture_is_a_duplicate"] * 6,
        "pictures_to_look_at",
    ]
    assert events[1].fields == {"source": "s3://b/1.png", "same_as": "s3://b/0.png"}
    assert events[-1].fields["pictures"] == 7
    assert len(events[-1].fields["sources"]) == 5
