"""`make demo`, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from worker.contract.manifest import Manifest


def test_the_demo_ends_with_an_adapter_a_clean_journal_and_a_report_that_shows_the_style(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "worker.cli", "demo", "--output", str(tmp_path / "demo")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
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
