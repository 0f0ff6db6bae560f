"""Results: the lines of output and error files, read while the batch runs or after it."""

from collections.abc import Iterator
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from xalen_batch import db, jsonl
from xalen_batch.config import MiB
from xalen_batch.models.files import FilePart

PAGE_ROWS = 2_000
PAGE_BYTES = 3 * MiB

_ANSWERED = "status_code IS NOT NULL AND status_code < 300"
_PARTS = {FilePart.OUTPUT: _ANSWERED, FilePart.ERROR: f"NOT ({_ANSWERED})"}

# The length of an answer is known without reading it, so a page ends at its bytes however long its answers are.
_PAGE = """
    SELECT line_no, custom_id, status_code, body, error_code, error_message FROM (
        SELECT *, sum(coalesce(octet_length(body), 0)) OVER (ORDER BY line_no) - coalesce(octet_length(body), 0) AS bytes_before
        FROM (
            SELECT line_no, custom_id, status_code, body, error_code, error_message FROM results
            WHERE batch_id = %(batch_id)s AND line_no > %(after)s AND {part}
            ORDER BY line_no LIMIT %(rows)s
        ) AS rows
    ) AS sized WHERE bytes_before < %(bytes)s ORDER BY line_no
"""


def lines(batch_id: UUID, part: FilePart, *, after: int = 0) -> Iterator[bytes]:
    """The part's JSONL lines that are there, in input order, from the line behind `after` on.

    Reads pages of about 3 MiB (one longer answer is a page), each by a statement of its own, so
    neither memory nor a transaction grows with the batch.
    """
    while rows := _page(batch_id, part, after):
        for row in rows:
            yield jsonl.result_line(batch_id, *row)
        after = rows[-1][0]


def chunks(batch_id: UUID, part: FilePart) -> Iterator[bytes]:
    """The same bytes, a page at a time: for answers over HTTP."""
    after = 0
    while rows := _page(batch_id, part, after):
        yield b"".join(jsonl.result_line(batch_id, *row) for row in rows)
        after = rows[-1][0]


def _page(batch_id: UUID, part: FilePart, after: int) -> list[TupleRow]:
    with db.reading() as session, psycopg.Cursor(db.driver(session)) as cursor:
        # Binary: answers come as bytes and not as hex digits.
        cursor.execute(
            psycopg.sql.SQL(_PAGE).format(part=psycopg.sql.SQL(_PARTS[part])),
            {"batch_id": batch_id, "after": after, "rows": PAGE_ROWS, "bytes": PAGE_BYTES},
            binary=True,
        )
        return cursor.fetchall()
