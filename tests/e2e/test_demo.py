"""`make demo`, as a newcomer runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.live_worker import eventually
from worker.contract.manifest import Manifest


@pytest.mark.timeout(900)
def test_the_demo_ends_with_an_adapter_a_clean_journal_and_a_report_that_shows_the_style(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "worker.cli", "demo", "--output", str(tmp_path / "demo")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    summary = json.loads(answer.stdout.strip().splitlines()[-1])
    assert set(summary) == {
        *("adapter_url", "job_id", "progress_events", "terminal_events", "scaling", "seconds"),
        *("report", "style"),
    }
    assert summary["adapter_url"].endswith("/models/style_10/lora_weights.safetensors")
    assert summary["scaling"] == 2.0
    assert summary["terminal_events"] == 1
    assert summary["progress_events"] >= 2

    report = Path(summary["report"])
    assert report.name == "report.html"
    assert report.read_text(encoding="utf-8").count("data:image/") >= 2 * 3
    manifest = Manifest.model_validate_json((report.parent / "manifest.json").read_bytes())
    assert manifest.job_id == summary["job_id"]
    previews = sorted((report.parent / "previews").glob("*.png"))
    assert [path.name.partition("_")[0] for path in previews] == ["after"] * 3 + ["before"] * 3
    assert all(Image.open(path).size == (128, 128) for path in previews)

    style = summary["style"]
    assert style["style_moved"] >= 0.6
    assert style["shapes_found"] >= 0.75


def test_a_demo_that_is_told_to_end_takes_its_broker_its_store_and_its_worker_along(tmp_path):
    log = tmp_path / "demo.log"
    with log.open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "demo", "--output", str(tmp_path / "demo")],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        eventually(lambda: "published job" in log.read_text(), "the demo works")
        assert len(parts_of(tmp_path)) >= 2  # the broker and the worker
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 128 + signal.SIGTERM
        eventually(lambda: not parts_of(tmp_path), "broker and worker are gone", 30)
        with pytest.raises(ProcessLookupError):  # nobody is left in its group: the store is gone
            os.killpg(demo.pid, 0)
    finally:
        demo.kill()
        for pid in parts_of(tmp_path):
            os.kill(pid, signal.SIGKILL)


def parts_of(folder):
    """Processes that were given something in this folder, but for the demo itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            given = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if str(folder).encode() in given and b"\0demo\0" not in given:
            found.append(int(process.name))
    return found
