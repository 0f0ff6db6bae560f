"""Results: the lines of output and error files, read while the batch runs or after it."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from xalen_batch import db, jsonl
from xalen_batch.config import MiB
from xalen_batch.models.files import FilePart

PAGE_ROWS = 2_000
FIRST_ROWS = 50
PAGE_BYTES = 1 * MiB
# A longer answer is read in pieces of this length: a connection to PostgreSQL keeps a buffer as
# long as the longest row.
PIECE_BYTES = 256 * 1024

_ANSWERED = "status_code IS NOT NULL AND status_code < 300"
_PARTS = {FilePart.OUTPUT: _ANSWERED, FilePart.ERROR: f"NOT ({_ANSWERED})"}

# The length of an answer is known without reading it, so a page ends at its bytes however long its
# answers are. An answer that is read in pieces counts as a whole page, so it has its page alone.
_PAGE = """
    SELECT line_no, custom_id, status_code, substr(body, 1, %(piece)s), error_code, error_message, is_escaped FROM (
        SELECT *, sum(CASE WHEN octet_length(body) > %(piece)s THEN %(bytes)s ELSE coalesce(octet_length(body), 0) END)
            OVER (ORDER BY line_no) AS bytes
        FROM (
            SELECT line_no, custom_id, status_code, body, error_code, error_message, is_escaped FROM results
            WHERE batch_id = %(batch_id)s AND line_no > %(after)s AND {part}
            ORDER BY line_no LIMIT %(rows)s
        ) AS rows
    ) AS sized WHERE bytes <= %(bytes)s ORDER BY line_no
"""
_PIECE = (
    "SELECT substr(body, %(start)s, %(piece)s) FROM results WHERE batch_id = %(batch_id)s AND"
    " line_no = %(line_no)s"
)


def chunks(batch_id: UUID, part: FilePart) -> Iterator[bytes]:
    """The part's JSONL lines that are there, in input order, in chunks of at most about 1 MiB.

    Each chunk is a statement of its own and is kept nowhere here, so neither memory nor a
    transaction grows with the batch or with an answer. FileNotFoundError for an answer that is
    erased between two of its pieces.
    """
    return iter(_Reader(batch_id, part).read, b"")


class _Reader:
    """The place in a part where the next chunk begins: behind a line, or within its answer."""

    def __init__(self, batch_id: UUID, part: FilePart) -> None:
        self._batch_id = batch_id
        self._part = part
        self._line_no = 0
        # Bytes of that line's answer that were read, while it may go on.
        self._read = 0
        # Most rows of the next page. PostgreSQL sums the lengths of all of them, also of those that
        # do not fit.
        self._rows = FIRST_ROWS

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        return self._piece() if self._read else self._page()

    def _page(self) -> bytes:
        place = {"after": self._line_no, "rows": self._rows, "bytes": PAGE_BYTES}
        rows = self._ask(
            psycopg.sql.SQL(_PAGE).format(part=psycopg.sql.SQL(_PARTS[self._part])), **place
        )
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
            # Binary: answers come as bytes and not as hex digits.
            cursor.execute(
                query, {"batch_id": self._batch_id, "piece": PIECE_BYTES, **values}, binary=True
            )
            return cursor.fetchall()
