"""Folders of running jobs stay; those of killed workers are swept."""

import os
import signal
import subprocess
import sys

import pytest

from worker.jobs import job_folder as module
from worker.jobs.job_folder import job_folder, sweep

HOLDS = """
import sys, time
from pathlib import Path
from worker.jobs.job_folder import job_folder
with job_folder(Path(sys.argv[1])) as folder:
    (folder / "a.jpg").write_bytes(b"a picture")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def another(tmp_path):
    """A process that works on a job, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    process.folder = process.stdout.readline().strip()
    yield process
    process.kill()
    process.wait()


def test_the_folder_is_gone_with_its_job(tmp_path):
    with job_folder(tmp_path / "work") as folder:
        (folder / "b").mkdir()
        assert sweep(tmp_path / "work") == 0
        assert folder.is_dir()
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_worker_left_is_swept_and_what_lives_is_not(tmp_path, another):
    with job_folder(tmp_path) as ours:
        assert sweep(tmp_path) == 0
        assert os.path.isdir(another.folder)
        another.send_signal(signal.SIGKILL)
        another.wait()
        assert sweep(tmp_path) == 1
        assert list(tmp_path.iterdir()) == [ours]


def test_a_job_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="x"), job_folder(tmp_path):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_ours_stay(tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / "job-list.txt").touch()
    assert sweep(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"keep", "job-list.txt"}


def test_there_may_be_nothing_yet(tmp_path):
    assert sweep(tmp_path / "work") == 0


def test_a_file_system_without_locks_is_worked_on_and_never_swept(tmp_path, mocker):
    mocker.patch.object(module.fcntl, "flock", side_effect=OSError("not supported"))
    with job_folder(tmp_path) as folder:
        assert sweep(tmp_path) == 0
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
