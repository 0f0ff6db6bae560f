"""Results: the lines of output and error files, readable while their batch runs.

They are rendered from rows of `results` until the batch is sealed; `content.py` then reads objects.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from xalen_batch import db, jsonl
from xalen_batch.config import MiB
from xalen_batch.models.files import FilePart

# Most rows of a page, most rows of the first page, and most bytes of answers in a page.
PAGE_ROWS = 2_000
FIRST_ROWS = 50
PAGE_BYTES = 1 * MiB
# Longer answers are read in pieces of this length, since a connection keeps a buffer as long as the
# longest row that it has received.
PIECE_BYTES = 256 * 1024

_ANSWERED = "status_code IS NOT NULL AND status_code < 300"
_PARTS = {FilePart.OUTPUT: _ANSWERED, FilePart.ERROR: f"NOT ({_ANSWERED})"}

# PostgreSQL knows the length of an answer without reading it: a first scan of the rows ends the page
# at PAGE_BYTES, a second one reads them. Sums over the rows with their answers took twice as long.
# An answer that is read in pieces counts as PAGE_BYTES, so no other answer is in its page.
_PAGE = """
    SELECT line_no, custom_id, status_code, substr(body, 1, %(piece)s), error_code, error_message, is_escaped
    FROM results
    WHERE batch_id = %(batch_id)s AND line_no > %(after)s AND {part} AND line_no <= (
        SELECT max(line_no) FROM (
            SELECT line_no, sum(bytes) OVER (ORDER BY line_no ROWS UNBOUNDED PRECEDING) AS bytes FROM (
                SELECT line_no,
                    CASE WHEN octet_length(body) > %(piece)s THEN %(bytes)s ELSE coalesce(octet_length(body), 0) END AS bytes
                FROM results
                WHERE batch_id = %(batch_id)s AND line_no > %(after)s AND {part}
                ORDER BY line_no LIMIT %(rows)s
            ) AS rows
        ) AS sized WHERE bytes <= %(bytes)s
    )
    ORDER BY line_no
"""
_PIECE = (
    "SELECT substr(body, %(start)s, %(piece)s) FROM results WHERE batch_id = %(batch_id)s AND"
    " line_no = %(line_no)s"
)


def chunks(batch_id: UUID, part: FilePart) -> Iterator[bytes]:
    """The JSONL lines of an output or error file, in input order, in chunks of about 1 MiB.

    Each chunk is one statement, so neither memory nor a transaction grows with the batch. Raises
    FileNotFoundError for an answer that is erased between two of its pieces.
    """
    return iter(_ResultReader(batch_id, part).read, b"")


class _ResultReader:
    """A cursor in an output or error file: behind a line, or within its answer.

    Keyset pagination by line numbers. One thread at a time calls it: a thread of the API's pool.
    """

    def __init__(self, batch_id: UUID, part: FilePart) -> None:
        self._batch_id = batch_id
        self._part = part
        self._line_no = 0
        # Bytes read of that line's answer, while there may be more; else 0.
        self._read = 0
        # Most rows of the next page, twice those of the last page: PostgreSQL sums the lengths of
        # all of them, also of rows that do not fit in the page.
        self._rows = FIRST_ROWS

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        return self._piece() if self._read else self._page()

    def _page(self) -> bytes:
        query = psycopg.sql.SQL(_PAGE).format(part=psycopg.sql.SQL(_PARTS[self._part]))
        rows = self._ask(query, after=self._line_no, rows=self._rows, bytes=PAGE_BYTES)
        if not rows:
            return b""
        self._rows = min(PAGE_ROWS, max(FIRST_ROWS, 2 * len(rows)))
        content = b"".join([jsonl.result_line(self._batch_id, *row) for row in rows])
        self._line_no, _, _, body, *_ = rows[-1]
        if len(body or b"") < PIECE_BYTES:
            return content
        self._read = PIECE_BYTES
        return content.removesuffix(jsonl.ANSWER_END)

    def _piece(self) -> bytes:
        rows = self._ask(psycopg.sql.SQL(_PIECE), line_no=self._line_no, start=self._read + 1)
        piece: bytes | None = rows[0][0] if rows else None
        if piece is None:
            raise FileNotFoundError(f"the answer of line {self._line_no} was erased")
        if len(piece) == PIECE_BYTES:
            self._read += PIECE_BYTES
            return piece
        self._read = 0
        return piece + jsonl.ANSWER_END

    def _ask(self, query: psycopg.sql.SQL | psycopg.sql.Composed, **values: Any) -> list[TupleRow]:
        with db.reading() as session, psycopg.Cursor(db.driver(session)) as cursor:
            # Binary: the server sends answers as bytes, not as twice as many hex digits.
            cursor.execute(
                query, {"batch_id": self._batch_id, "piece": PIECE_BYTES, **values}, binary=True
            )
            return cursor.fetchall()
