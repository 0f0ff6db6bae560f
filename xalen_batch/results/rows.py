"""The results of a batch as a table: the figures of each line, without its answer."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch.models import Batch, Result

# Lines among which a page looks for those that failed: they may be rare.
SPAN = 20_000


class ResultRow(NamedTuple):
    """The result of one line. `amount`: its exact net price in USD; None: it did not succeed."""

    line_no: int
    custom_id: str
    model: str
    status_code: int | None
    error_code: str | None
    input_tokens: int
    output_tokens: int
    amount: Decimal | None

    @property
    def code(self) -> str | None:
        """Why the line did not succeed: an error code, or `http_` and a status."""
        if self.amount is not None:
            return None
        return self.error_code or f"http_{self.status_code}"


class Rows(NamedTuple):
    """Results in the order of the input; `after`: the line behind which the next page begins."""

    data: Sequence[ResultRow]
    after: int | None


def page(
    session: Session, batch: Batch, *, total: int, after: int, limit: int, is_failed: bool
) -> Rows:
    """The results behind a line while they are rows: until their day's partition is dropped.

    `total`: the lines of the batch. `is_failed`: only lines that did not succeed, among the next
    SPAN lines.
    """
    found = (
        select(*(getattr(Result, name) for name in ResultRow._fields))
        .where(Result.batch_id == batch.id, Result.line_no > after)
        .order_by(Result.line_no)
        .limit(limit + 1)
    )
    if is_failed:
        found = found.where(Result.amount.is_(None), Result.line_no <= after + SPAN)
    rows = [ResultRow(*row) for row in session.execute(found)]
    if len(rows) > limit:
        return Rows(rows[:limit], rows[limit - 1].line_no)
    may_follow = is_failed and after + SPAN < total
    return Rows(rows, after + SPAN if may_follow else None)
