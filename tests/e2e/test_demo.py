"""`make demo`, as a newcomer runs it."""

import json
import os
import subprocess
import sys


def test_the_demo_ends_with_an_adapter_a_clean_journal_and_one_json_line(tmp_path):
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
    }
    assert summary["adapter_url"].endswith("/models/style_10/lora_weights.safetensors")
    assert summary["scaling"] == 2.0
    assert summary["terminal_events"] == 1
    assert summary["progress_events"] >= 2
