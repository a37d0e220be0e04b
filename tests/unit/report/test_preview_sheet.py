"""All previews on one picture: each in its place, and the words above it within its column."""

from PIL import Image, ImageColor

from worker.contract.manifest import Preview, PreviewAt
from worker.report.preview_sheet import draw_sheet

COLOURS = {
    **{"before": (200, 0, 0), "step": (0, 200, 0), "after": (0, 0, 200)},
    **{"other before": (90, 0, 0), "other after": (0, 0, 90)},
}


def sheet_of(folder, previews):
    """The sheet of previews whose files are named for colours; what is where, row by row."""
    for name in {file for preview in previews for file in preview.files}:
        Image.new("RGB", (128, 128), name).save(folder / name, "PNG")
    draw_sheet(previews, folder, folder / "sheet")
    with Image.open(folder / "sheet") as sheet:
        rows = range(12 + 24 + 24 + 64, sheet.height, 24 + 128 + 12)
        columns = range(12 + 64, sheet.width, 128 + 12)
        return [[sheet.getpixel((x, y)) for x in columns] for y in rows]


def colours(*names):
    return [ImageColor.getrgb(name) for name in names]


def test_a_row_without_pictures_along_the_way_has_blanks_there_and_its_last_below_after(tmp_path):
    way = (PreviewAt(step=2, file="lime"), PreviewAt(step=10, file="green"))
    whole = Preview(prompt="a", seed=0, before="red", after="blue", along=way)
    plain = Preview(prompt="b", seed=0, before="maroon", after="navy")
    lost_one = Preview(prompt="c", seed=0, before="pink", after="cyan", along=way[1:])
    assert sheet_of(tmp_path, [plain, lost_one, whole]) == [
        colours("maroon", "white", "white", "navy"),
        colours("pink", "white", "green", "cyan"),
        colours("red", "lime", "green", "blue"),
    ]


def test_a_row_that_lost_its_second_seed_stands_below_the_first(tmp_path):
    way = (PreviewAt(step=10, file="green"),)
    both = [
        Preview(prompt="a", seed=0, before="red", after="blue", along=way),
        Preview(prompt="a", seed=1, before="maroon", after="navy"),
    ]
    cut_off = Preview(prompt="b", seed=0, before="pink", after="cyan")
    assert sheet_of(tmp_path, [*both, cut_off]) == [
        colours("red", "green", "blue", "maroon", "navy"),
        colours("pink", "white", "cyan", "white", "white"),
    ]


def test_each_picture_stands_in_its_column_enlarged_if_it_is_small(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    at = PreviewAt(step=12_000, file="step.png")
    previews = [
        Preview(prompt="x" * 400, seed=0, before="before.png", after="after.png", along=(at,)),
        Preview(prompt="x" * 400, seed=15, before="other before.png", after="other after.png"),
    ]
    draw_sheet(previews, tmp_path, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 12 + 5 * (128 + 12)
        lefts = [12 + column * 140 for column in range(5)]
        middles = [sheet.getpixel((left + 64, sheet.height - 76)) for left in lefts]
        # Between the columns, words are cut off.
        gaps = {sheet.getpixel((left + 134, y)) for left in lefts[:4] for y in range(30)}
    assert middles == list(COLOURS.values())
    assert gaps == {(255, 255, 255)}
