"""Where do a running job's files lie, and who removes those of a worker that was killed?

A folder is locked as long as its job runs. The kernel lets the lock go with the process, however
that ends, so what is not locked is nobody's.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger()

_PREFIX = "job-"


@contextmanager
def job_folder(work_dir: Path) -> Iterator[Path]:
    """A folder of the job's own, gone with it."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with _locked(work_dir):  # nobody sweeps between its making and its locking
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=work_dir))
        lock = os.open(folder, os.O_RDONLY)
        _lock(lock, wait=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(work_dir: Path) -> int:
    """Remove the folders of jobs whose worker is gone; how many there were."""
    found = [folder for folder in work_dir.glob(f"{_PREFIX}*") if folder.is_dir()]
    swept = sum(_remove_if_nobodys(folder) for folder in found)
    if swept:
        log.info("job_folders_swept", folders=swept)
    return swept


def _remove_if_nobodys(folder: Path) -> bool:
    with _locked(folder.parent):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its job has ended meanwhile
            return False
        ours = _lock(lock, wait=False)
    if ours:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return ours


@contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    lock = os.open(work_dir, os.O_RDONLY)
    try:
        _lock(lock, wait=True)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether it is locked now; a file system without locks is never swept."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
