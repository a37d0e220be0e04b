"""The report is whole, stands alone, is small enough, and is never run by what a message says."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from worker.contract.dataset import PictureReport
from worker.report.page import report_page

HOSTILE = """</title><script>alert("x")</script><img src=x onerror=alert(1)>'"`{{ 7*7 }}"""


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page(manifest, folder) -> str:
    return report_page(manifest, folder, folder / "thumbnails")


def test_the_page_says_what_was_trained_and_what_came_out(finished):
    text = " ".join(Tags(page(*finished())).text.split())
    for said in (
        "hatchstyle",
        "the loss at fixed noise fell from 0.5 to 0.4 (−20.0 %)",
        "trained on 4 pictures for 100 steps in 3 min 20 s",
        "“a circle, number 1”",
        "All 4 pictures were used",
        "learning_rate0.0001",
        "lora-worker reproduce manifest.json",
        '.load_lora_weights("lora_weights.safetensors")',
        "example/stable",
        "<lora:style_10:1>",
        "It ran in one piece.",
    ):
        assert said in text, said


def with_facts(manifest, **facts):
    return manifest.model_copy(update={"metadata": manifest.metadata | facts})


def test_pictures_that_were_held_out_are_not_said_to_be_trained_on(finished):
    manifest, folder = finished(pictures=10)
    held_out = with_facts(manifest, plan={"pictures": 8})
    text = " ".join(Tags(page(held_out, folder)).text.split())
    assert "trained on 8 of 10 pictures for 100 steps" in text
    assert "<dt>pictures</dt><dd>8 of 10</dd>" in page(held_out, folder)
    all_of_them = with_facts(manifest, plan={"pictures": 10})
    assert page(all_of_them, folder) == page(manifest, folder)
    assert "trained on 10 pictures for 100 steps" in page(manifest, folder)


EXACTLY = "on the same kind of machine, the same file comes out, bit for bit."
BY_ROUNDING = "trains it again, but the file differs by rounding, because "


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, EXACTLY),
        ({"packing": {"slots": 8, "mean_company": 1.0}, "resumed_exactly": True}, EXACTLY),
        (
            {"packing": {"slots": 8, "mean_company": 1.01}},
            f"{BY_ROUNDING}it shared passes with other jobs.",
        ),
        (
            {"resumed_exactly": False, "resumed_inexactly_because": "torch: 3 here, 2 before"},
            f"{BY_ROUNDING}it did not go on exactly as it was when it was interrupted "
            "(torch: 3 here, 2 before).",
        ),
        (
            {"packing": {"slots": 2, "mean_company": 2.0}, "resumed_exactly": False},
            f"{BY_ROUNDING}it shared passes with other jobs and it did not go on exactly as it "
            "was when it was interrupted.",
        ),
    ],
)
def test_the_same_bits_are_promised_only_where_they_come_out_again(finished, facts, said):
    manifest, folder = finished(pictures=1, previews=0)
    text = " ".join(Tags(page(with_facts(manifest, **facts), folder)).text.split())
    promise = text.partition("Train it again ")[2]
    assert said in promise
    assert (EXACTLY in promise) != (BY_ROUNDING in promise)


def test_every_picture_is_in_the_page_and_nothing_else_is_loaded(finished):
    tags = Tags(page(*finished())).tags
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 2 * 2 + 4
    assert all(source.startswith("data:image/") for source in sources)
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in tags:
        assert tag == "img" or "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "link":
            assert attributes["href"] == "data:,"


def test_pictures_from_along_the_way_stand_between_before_and_after(finished):
    tags = Tags(page(*finished(previews=1, along=2))).tags
    shown = [attributes["alt"] for tag, attributes in tags if tag == "img"]
    assert shown[:4] == [
        "without the adapter",
        "with the adapter of step 25",
        "with the adapter of step 50",
        "with the adapter",
    ]


def test_what_a_message_says_is_shown_and_never_run(finished):
    manifest, folder = finished()
    hostile = manifest.model_copy(
        update={
            "trigger_word": HOSTILE,
            "job_id": HOSTILE,
            "dataset": (
                PictureReport(index=0, source=f"s3://b/{HOSTILE}", caption=HOSTILE, reason=HOSTILE),
            ),
            "previews": (manifest.previews[0].model_copy(update={"prompt": HOSTILE}),),
            "parameters": {HOSTILE: HOSTILE},
            "metadata": manifest.metadata | {"validation": {"says": HOSTILE}},
        }
    )
    plain, seen = Tags(page(manifest, folder)), Tags(page(hostile, folder))
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in plain.tags}
    assert seen.text.count(HOSTILE) >= 7
    assert not [a for _, attributes in seen.tags for a in attributes if a.startswith("on")]


def test_many_large_pictures_stay_within_three_megabytes(finished, tmp_path):
    manifest, folder = finished(pictures=200, previews=8, side=640)
    for preview in manifest.previews:
        for name in (preview.before, preview.after):
            Image.effect_noise((640, 640), 90).convert("RGB").save(folder / name)
    for path in (folder / "thumbnails").iterdir():
        Image.effect_noise((160, 160), 90).convert("RGB").save(path, "JPEG", quality=80)
    made = page(manifest, folder)
    assert len(made.encode()) <= 3_000_000
    assert "shape 199" in made


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"resumed": True, "resumed_at_step": 40, "resumed_exactly": True}, "bit for bit as if"),
        (
            {
                "resumed": True,
                "resumed_at_step": 40,
                "resumed_exactly": False,
                "resumed_inexactly_because": "torch: 3 here, 2 before",
            },
            "not exactly, because torch: 3 here, 2 before",
        ),
        ({"claim": 3}, "taken up 3 times"),
    ],
)
def test_an_interruption_is_said(finished, facts, said):
    manifest, folder = finished()
    text = Tags(
        page(manifest.model_copy(update={"metadata": manifest.metadata | facts}), folder)
    ).text
    assert said in " ".join(text.split())


def test_warnings_stand_at_their_pictures(finished):
    manifest, folder = finished()
    rows = list(manifest.dataset)
    rows[1] = rows[1].model_copy(update={"warnings": ("duplicate", "blurred"), "duplicate_of": 0})
    rows[2] = rows[2].model_copy(update={"reason": "it is damaged"})
    text = Tags(page(manifest.model_copy(update={"dataset": tuple(rows)}), folder)).text
    assert "the same as number 1" in text
    assert "left out: it is damaged" in text
    assert "3 of 4 pictures were used. To look at: 1 × the same as another, 1 × blurred." in text


def test_without_previews_the_page_says_why(finished):
    manifest, folder = finished(previews=0, previews_left_out="Without a GPU they take minutes.")
    text = " ".join(Tags(page(manifest, folder)).text.split())
    assert "No previews were drawn. Without a GPU they take minutes." in text


def test_a_page_of_a_training_whose_losses_are_not_numbers_has_no_curve_but_stands(finished):
    manifest, folder = finished()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    made = page(manifest, folder)
    assert "<polyline" not in made
    assert "How it learned" in made


def test_the_curves_lie_within_their_drawings(finished):
    made = page(*finished())
    charts = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', made, re.DOTALL)
    assert len(charts) == 4
    for svg in re.findall(r"<svg.*?</svg>", made, re.DOTALL):
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
        for points in re.findall(r'points="([^"]+)"', svg):
            for point in points.split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_where_jobs_share_a_trainer_its_memory_is_not_called_the_job_s(finished):
    manifest, folder = finished()
    memory = manifest.memory.model_copy(update={"peak": 3_000_000_000})
    alone = manifest.model_copy(update={"memory": memory})
    metadata = {**manifest.metadata, "packing": {"slots": 8, "mean_company": 3.0}}
    shared = alone.model_copy(update={"metadata": metadata})
    assert "of its trainer" not in page(alone, folder)
    assert "GPU memory of its trainer" in page(shared, folder)
