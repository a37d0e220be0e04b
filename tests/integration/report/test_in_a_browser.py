"""The report in a real Chromium: whole, quiet, by itself, on a phone and on a desk."""

import os
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.unit.report.test_page import HOSTILE
from worker.report.page import report_page

PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture
def report(finished) -> str:
    """The address of a page, some of whose words are hostile."""
    manifest, folder = finished(along=3)
    rows = [row.model_copy(update={"caption": HOSTILE}) for row in manifest.dataset]
    manifest = manifest.model_copy(
        update={"dataset": tuple(rows), "trigger_word": HOSTILE, "job_id": HOSTILE}
    )
    path = folder / "report.html"
    path.write_text(report_page(manifest, folder, folder / "thumbnails"))
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_report_loads_quietly_by_itself_and_shows_every_picture(
    browser: Browser, report: str, size: tuple[int, int], dark: bool
):
    browser.resize(*size)
    browser.prefer("dark" if dark else "light")
    browser.open(report)
    natural = browser.evaluate("[...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert len(natural) == 2 * (2 + 3) + 4
    assert all(width > 0 for width in natural)

    drawn = "[...document.querySelectorAll('polyline')].filter(l => l.getBBox().width > 100"
    assert browser.evaluate(drawn + " && l.checkVisibility()).length") == 3

    # Nothing stands over the edge, and text is large enough to be read.
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    sizes = "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility())"
    assert (
        browser.evaluate(f"Math.min(...{sizes}.map(e => parseFloat(getComputedStyle(e).fontSize)))")
        > 9
    )

    ink, paper = browser.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    )
    assert (brightness(ink) > brightness(paper)) is dark

    said = [e["method"] for e in browser.events]
    assert "Runtime.consoleAPICalled" not in said
    assert "Runtime.exceptionThrown" not in said
    assert "Page.javascriptDialogOpening" not in said
    assert [e for e in browser.events if e["method"] == "Log.entryAdded"] == []
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [report]
    keep_picture(browser, f"{'phone' if size is PHONE else 'desk'}-{'dark' if dark else 'light'}")


def test_the_check_hears_of_scripts_and_of_requests(browser: Browser, tmp_path):
    """The control: what the test above would not let pass."""
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('x')</script><img src='other.png'>")
    browser.resize(*PHONE)
    browser.open(page.as_uri())
    assert browser.evaluate("document.images[0].naturalWidth") == 0
    said = {event["method"] for event in browser.events}
    assert {"Runtime.consoleAPICalled", "Log.entryAdded"} <= said
    asked = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) == 2


def brightness(colour: str) -> float:
    numbers = colour[colour.index("(") + 1 : colour.index(")")].split(",")
    return sum(map(float, numbers[:3]))


def keep_picture(browser: Browser, name: str) -> None:
    """Into `REPORT_PICTURES`, if that names a folder: to be looked at."""
    if folder := os.environ.get("REPORT_PICTURES"):
        browser.screenshot(Path(folder, f"{name}.png"))
