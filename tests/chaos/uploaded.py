"""The invariants of input files: the bytes that were sent, and nothing of uploads that ended."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from uuid import UUID

import psycopg

from tests import factories
from tests.chaos.drive import Delivery
from tests.chaos.system import System
from tests.waiting import wait_until

SWEPT_WITHIN = 30.0
SENT_AS_BYTES = frozenset({"file", "parts", "sdk"})

# As if the uploads had been created last week, when the sweep forgets their rows.
_AGE = "UPDATE uploads SET expires_at = now() - interval '8 days' WHERE filename LIKE %s"
_UPLOADS = """
    SELECT uploads.filename, uploads.status, file_id, sha256
    FROM uploads LEFT JOIN files ON files.id = file_id WHERE uploads.filename LIKE %s
"""
_FILES = "SELECT filename, count(*) FROM files WHERE filename = ANY(%s) GROUP BY filename"
_OF_NO_BATCH = """
    SELECT count(*) FROM files
    WHERE filename = 'requests.jsonl' AND id NOT IN (SELECT input_file_id FROM batches)
"""
# Rows of parts refer to these.
_LEFT = "SELECT count(*) FROM uploads WHERE filename LIKE %s"


def wrong(
    system: System, connection: psycopg.Connection, run: str, deliveries: Sequence[Delivery]
) -> Iterator[str]:
    """All violations of the invariants, before the sweep has removed the rows of uploads."""
    completed: Counter[str] = Counter()
    sent = {
        _filename(delivery): factories.jsonl(delivery.order.lines)
        for delivery in deliveries
        if delivery.order.sent in SENT_AS_BYTES
    }
    for filename, status, file_id, sha256 in connection.execute(_UPLOADS, [f"{run}-%"]).fetchall():
        if (status == "completed") != (file_id is not None):
            yield f"an upload of {filename} is {status}, and its file is {file_id}"
        elif file_id is not None:
            completed[filename] += 1
            if (
                not sha256
                == hashlib.sha256(_stored(system, file_id)).digest()
                == _digest(sent.get(filename))
            ):
                yield f"an upload of {filename} is a file with other bytes"
    names = [_filename(delivery) for delivery in deliveries]
    files = Counter(dict(connection.execute(_FILES, [names]).fetchall()))
    for delivery in deliveries:
        name, filename = delivery.order.name, _filename(delivery)
        if delivery.order.sent == "sdk":
            # The SDK sends no Idempotency-Key: each of its attempts may be a file.
            if not 0 < completed[filename] == files[filename]:
                yield f"{name}: {completed[filename]} uploads made {files[filename]} files"
        elif delivery.order.sent != "requests" and files[filename] != 1:
            yield f"{name}: one Idempotency-Key made {files[filename]} files"
        if delivery.order.sent == "parts" and completed[filename] != 1:
            yield f"{name}: {completed[filename]} uploads with one Idempotency-Key are completed"
        if delivery.batch:
            yield from _input(system, delivery)
    row = connection.execute(_OF_NO_BATCH).fetchone()
    if row and row[0]:
        yield f"{row[0]} files of `requests` belong to no batch"


def age(connection: psycopg.Connection, run: str) -> int:
    """Let the time of all uploads of a run be over, for the sweep; the number that is completed."""
    row = connection.execute(
        "SELECT count(*) FROM uploads WHERE status = 'completed' AND filename LIKE %s", [f"{run}-%"]
    ).fetchone()
    connection.execute(_AGE, [f"{run}-%"])
    return int(row[0]) if row else 0


def left(connection: psycopg.Connection, run: str) -> list[str]:
    """Wait until the sweep has removed the rows of aged uploads. `leftovers` sees to objects."""

    def rows() -> int:
        row = connection.execute(_LEFT, [f"{run}-%"]).fetchone()
        return int(row[0]) if row else 0

    try:
        wait_until(lambda: not rows(), timeout=SWEPT_WITHIN)
    except AssertionError:
        return [f"{rows()} uploads that ended long ago are left"]
    return []


def _filename(delivery: Delivery) -> str:
    if delivery.first_id:
        return f"{delivery.first_id}_retry.jsonl"
    return f"{delivery.run}-{delivery.order.name}.jsonl"


def _input(system: System, delivery: Delivery) -> Iterator[str]:
    """The input has each line of the order once, in its place."""
    stored = _stored(system, UUID(delivery.batch["input_file_id"].removeprefix("file-")))
    order = delivery.order
    if order.sent in SENT_AS_BYTES:
        is_right = stored == factories.jsonl(order.lines)
    else:
        is_right = [json.loads(line) for line in stored.splitlines()] == [*order.lines]
    if not is_right:
        yield f"{order.name}: its input file is not the lines that it was sent"


def _stored(system: System, file_id: UUID) -> bytes:
    try:
        return (system.files / "input" / file_id.hex).read_bytes()
    except FileNotFoundError:
        return b""


def _digest(content: bytes | None) -> bytes | None:
    return None if content is None else hashlib.sha256(content).digest()
