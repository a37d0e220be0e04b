"""What a backend remembers of its trainings: two tables of SQLite, one connection a call."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

_PATH = os.environ.get("DATABASE", "jobs.sqlite3")

_TABLES = """
create table if not exists jobs (
    job_id text primary key, style_id integer not null, state text not null default 'queued',
    cancel_requested integer not null default 0, sequence integer not null default 0,
    percent integer not null default 0, seconds_left integer, model_url text, error_code text,
    error_message text, notifications integer not null default 0
);
create table if not exists received (key text primary key);
"""


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """A connection whose changes are kept together, or not at all."""
    connection = sqlite3.connect(_PATH, timeout=10, isolation_level="IMMEDIATE")
    connection.row_factory = sqlite3.Row
    with closing(connection), connection:
        yield connection


def make_tables() -> None:
    """At the start."""
    with transaction() as db:
        db.executescript(_TABLES)


def add(job_id: str, style_id: int) -> None:
    """A job that is there already stays as it is."""
    with transaction() as db:
        db.execute(
            "insert into jobs (job_id, style_id) values (?, ?) on conflict do nothing",
            (job_id, style_id),
        )


def remove(job_id: str) -> None:
    """It was never sent."""
    with transaction() as db:
        db.execute("delete from jobs where job_id = ?", (job_id,))


def find(job_id: str) -> dict[str, Any] | None:
    """All that is known of a job."""
    with transaction() as db:
        row = db.execute("select * from jobs where job_id = ?", (job_id,)).fetchone()
    return dict(row) if row else None


def request_cancel(job_id: str) -> None:
    """Its next report is to be answered with 410."""
    with transaction() as db:
        db.execute("update jobs set cancel_requested = 1 where job_id = ?", (job_id,))


def take_progress(job_id: str, sequence: int, percent: int, seconds_left: int | None) -> bool:
    """The newest report counts, and none after the end; whether the job is to be canceled."""
    with transaction() as db:
        db.execute(
            "update jobs set state = 'running', sequence = ?, percent = ?, seconds_left = ? "
            "where job_id = ? and state in ('queued', 'running') and sequence < ?",
            (sequence, percent, seconds_left, job_id, sequence),
        )
        (canceled,) = db.execute(
            "select cancel_requested from jobs where job_id = ?", (job_id,)
        ).fetchone()
    return bool(canceled)


def take_end(
    job_id: str,
    key: str,
    state: str,
    *,
    model_url: str | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
) -> bool:
    """Once a job: what changes and the key that says so are one transaction. False for a repeat."""
    with transaction() as db:
        kept = db.execute("insert into received values (?) on conflict do nothing", (key,))
        if kept.rowcount == 0:
            return False
        db.execute(
            "update jobs set state = ?, model_url = ?, error_code = ?, error_message = ?, "
            "seconds_left = 0, percent = iif(? = 'completed', 100, percent), "
            "notifications = notifications + 1 where job_id = ?",
            (state, model_url, error_code, error_message, state, job_id),
        )
    return True
