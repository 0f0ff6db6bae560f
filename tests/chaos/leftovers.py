"""Leftovers that a run must not have when its batches have ended: leases, claims, temporary files,
orphaned uploads, processes.
"""

import os
import time
from collections.abc import Iterator

import psycopg

from tests.chaos.system import System

# The sweep keeps stored bytes without a row for hours, since an upload may still be writing them.
# Seconds by which files are made to look older.
OLDER = 7 * 3600
SWEPT_WITHIN = 30.0
# Seconds within which a system with restarted processes has to be ready.
SETTLED_WITHIN = 15.0


def left(system: System) -> list[str]:
    with system.connect() as connection:
        return [*in_tables(connection), *_in_storage(system, connection), *_processes(system)]


def in_tables(connection: psycopg.Connection) -> Iterator[str]:
    """Leftovers in the rows of ended batches; a batch that still runs is one as well."""
    for what, query in (
        (
            "batches that have not ended",
            (
                "SELECT count(*) FROM batches WHERE status NOT IN ('completed', 'failed',"
                " 'cancelled', 'expired')"
            ),
        ),
        ("leases of batches", "SELECT count(*) FROM batches WHERE lease_until IS NOT NULL"),
        ("leases of tasks", "SELECT count(*) FROM tasks WHERE lease_until IS NOT NULL"),
        ("tasks that are not done", "SELECT count(*) FROM tasks WHERE state <> 'done'"),
    ):
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        if row and row[0]:
            yield f"{row[0]} {what} are left"


def _in_storage(system: System, connection: psycopg.Connection) -> Iterator[str]:
    """Every upload with a row is stored completely; the sweeps remove old uploads without one."""
    rows = connection.execute(
        "SELECT id, bytes, sha256 FROM files WHERE batch_id IS NULL AND deleted_at IS NULL"
    ).fetchall()
    stored = {
        path.name: path
        for prefix in ("input", "parts")
        for path in (system.files / prefix).glob("*")
    }
    for id_, size, _ in rows:
        path = stored.pop(id_.hex, None)
        if path is None or path.stat().st_size != size:
            yield (
                f"the upload {id_.hex} has {path.stat().st_size if path else 'none'} of its {size}"
                " bytes"
            )
    # The parts of uploads that have not ended.
    for (part_id,) in connection.execute("SELECT id FROM upload_parts"):
        stored.pop(part_id.hex, None)
    long_ago = time.time() - OLDER
    for path in stored.values():
        os.utime(path, (long_ago, long_ago))
    deadline = time.monotonic() + SWEPT_WITHIN
    while any(path.exists() for path in stored.values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    yield from (
        f"{path.name} in storage belongs to no file, and the sweep leaves it"
        for path in stored.values()
        if path.exists()
    )


def _processes(system: System) -> Iterator[str]:
    """The system is ready, and no process of the installation runs beside it."""
    deadline = time.monotonic() + SETTLED_WITHIN
    while not system.is_ready and time.monotonic() < deadline:
        time.sleep(0.2)
    if not system.is_ready:
        yield (
            "the system is not ready;"
            f" {[name for name, part in system.parts.items() if not part.is_running]} do not run"
        )
    known = {part.pid for part in system.parts.values() if part.pid is not None}
    known |= {
        store.process.pid for store in (system.postgres, system.valkey) if store.process is not None
    }
    for pid, words in system.processes().items():
        # PostgreSQL has child processes, whose command lines begin with `postgres:`.
        if pid not in known and not words.startswith("postgres:"):
            yield f"the process {pid} is left: {words[:200]}"
