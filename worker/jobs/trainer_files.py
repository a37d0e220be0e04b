"""Is this a file of this job? What a trainer names is looked at before it is stored.

A trainer holds no credentials, and its pictures are strangers'. The supervisor reads for it what it
could not, so it reads nothing but the job's own files.
"""

import re
from pathlib import Path

from worker.contract.errors import ErrorCode, JobError

#: A name below the job's prefix: plain parts, none of which begins with a dot.
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}/){0,3}[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def own_file(path: str, folder: Path) -> Path:
    """`path`, a plain file (or nothing) below `folder`, links followed. Raises `JobError`."""
    found = Path(path).resolve()
    if not found.is_relative_to(folder.resolve()) or (found.exists() and not found.is_file()):
        raise _not_ours("a file outside of the job's folder")
    return found


def own_name(name: str) -> str:
    """`name`, which stays below whatever prefix it is put to. Raises `JobError`."""
    if not _NAME.fullmatch(name):
        raise _not_ours("a file of a name that none of its files has")
    return name


def _not_ours(what: str) -> JobError:
    return JobError(
        ErrorCode.WORKER_CRASHED,
        f"The training process named {what}; nothing of it was stored.",
        transient=True,
    )
