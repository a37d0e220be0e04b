"""A trainer that a picture has taken over does not make the supervisor read or write for it."""

import os
import stat

import pytest

from worker.contract.errors import JobError
from worker.jobs.job_folder import job_folder
from worker.jobs.trainer_files import own_file, own_name


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job" / "outputs").mkdir(parents=True)
    (tmp_path / "secret").write_text("credentials")
    return tmp_path / "job"


def test_files_of_the_job_are_its_own(folder):
    path = folder / "outputs" / "lora_weights.safetensors"
    path.write_bytes(b"weights")
    assert own_file(str(path), folder).read_bytes() == b"weights"


def test_a_file_that_is_gone_again_is_left_to_whoever_opens_it(folder):
    assert not own_file(str(folder / "outputs" / "gone"), folder).exists()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/proc/self/environ", "{job}/../secret", "{job}/link", "{job}/outputs", ""],
)
def test_no_other_file_is_read_for_a_trainer(folder, path):
    os.symlink(folder.parent / "secret", folder / "link")
    with pytest.raises(JobError) as caught:
        own_file(path.format(job=folder), folder)
    assert caught.value.transient
    assert "secret" not in caught.value.message


def test_a_pipe_is_not_opened_for_a_trainer(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(JobError):
        own_file(str(folder / "pipe"), folder)


@pytest.mark.parametrize(
    "name", ["lora_weights.safetensors", "previews/000_before.png", "a/b/c/d.txt"]
)
def test_names_of_outputs_are_kept(name):
    assert own_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/../../x", "/etc/x", "a//b", ".hidden", "a/.hidden"),
        *("a\\b", "a\nb", "a b", "ä", "x" * 300, "a/b/c/d/e", "s3://other/x", "a/"),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(JobError):
        own_name(name)


def test_a_jobs_folder_is_nobody_elses(tmp_path):
    with job_folder(tmp_path / "work") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
