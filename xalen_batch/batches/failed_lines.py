"""Failed lines: the numbers of the lines of an ended batch that ran without success, by reason.

A line's reason is its error code, or `http_` and the status of its refusal, as on the invoice.
Invalid lines that validation skipped (model "") are left out: they did not run.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import text

from xalen_batch import db
from xalen_batch.models import Batch

# Lines that one statement reads; a row of `sealed_lines` has as many.
STEP = 10_000

_FOUND = """
    SELECT max(line_no), array_agg(line_no ORDER BY line_no) FILTER (
        WHERE NOT coalesce(status_code < 300, false) AND model <> ''
        AND coalesce(error_code, 'http_' || status_code) = ANY(CAST(:reasons AS text[]))
    )
"""
_OF_ROWS = text(f"""
    {_FOUND} FROM (
        SELECT line_no, model, status_code, error_code FROM results
        WHERE batch_id = :batch_id AND line_no > :after ORDER BY line_no LIMIT :step
    ) AS line
""")
_OF_SEALED = text(f"""
    {_FOUND} FROM (
        SELECT coalesce(line_no, first_line + position - 1) AS line_no, model, status_code,
            error_code
        FROM (
            SELECT * FROM sealed_lines WHERE batch_id = :batch_id AND first_line > :after
            ORDER BY first_line LIMIT 1
        ) AS chunk
        CROSS JOIN LATERAL unnest(line_nos, models, status_codes, error_codes) WITH ORDINALITY
            AS part (line_no, model, status_code, error_code, position)
    ) AS line
""")


def numbers(batch: Batch, reasons: Sequence[str]) -> Iterator[int]:
    """The numbers of an ended batch's lines that failed for one of these reasons, ascending.

    One statement reads STEP lines, so neither memory nor a transaction grows with the batch.
    """
    statement = _OF_ROWS if batch.sealed_at is None else _OF_SEALED
    after = 0
    while True:
        values = {"batch_id": batch.id, "after": after, "reasons": list(reasons), "step": STEP}
        with db.reading() as session:
            last, found = session.execute(statement, values).one()
        if last is None:
            return
        yield from found or ()
        after = last
