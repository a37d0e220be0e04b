"""All previews on one picture: each in its place, and the words above it within its column."""

from PIL import Image

from worker.contract.manifest import Preview, PreviewAt
from worker.report.preview_sheet import draw_sheet

COLOURS = {
    **{"before": (200, 0, 0), "step": (0, 200, 0), "after": (0, 0, 200)},
    **{"other before": (90, 0, 0), "other after": (0, 0, 90)},
}


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
