"""Statements as the API shows them: whole, in pieces, or in pages of lines."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from xalen_batch import db, ids, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import statement_credits, statements
from xalen_batch.billing.statements import ZERO, Place
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest
from xalen_batch.models import CreditNote, Invoice, InvoiceLine

# Lines of a statement that are read and rendered at a time.
PAGE_LINES = 1_000


def pieces(owner: Owner, month: date) -> Iterator[bytes]:
    """The statement of a month as JSON, in pieces: the issued one, or else a draft. Writes nothing.

    `month`: its first day, UTC. An invoice belongs to the month in which it was issued. Each piece
    is one statement, so neither memory nor a transaction grows with the month. The totals are the
    sums of the lines that were read.
    """
    return iter(_StatementReader(owner, month).read, b"")


@money.exact
def page(
    session: Session, owner: Owner, month: date, *, limit: int, after: str | None
) -> dict[str, Any]:
    """The statement of a month with at most `limit` of its lines, as a JSON object.

    `after`: the `invoice_id` or `credit_note_id` of the last line of the page before. Raises
    InvalidRequest if the statement has no such line. The totals are those of the whole statement; a
    draft has them on its last page only, since they are a sum over the month that each page would
    compute again.
    """
    draft = statements.draft_statement(owner, month)
    source = None if after is None else _parse_source(after)
    issued = statements.issued_statement(session, draft)
    found = (
        _draft_page(session, draft, limit, source)
        if issued is None
        else _issued_page(session, issued, limit, source)
    )
    return {
        **_head(issued or draft),
        "lines": [_render_line(line) for line in found.lines],
        **found.totals,
        "has_more": found.has_more,
    }


class _Page(NamedTuple):
    lines: Sequence[Any]
    totals: Mapping[str, str | None]
    has_more: bool


class _Source(NamedTuple):
    """The invoice or the credit note of a line."""

    is_credit: bool
    id: UUID


def _is_of(source: _Source) -> ColumnElement[bool]:
    column = InvoiceLine.source_credit_id if source.is_credit else InvoiceLine.source_invoice_id
    return column == source.id


def _issued_page(session: Session, statement: Invoice, limit: int, source: _Source | None) -> _Page:
    position = 0
    if source is not None:
        position = session.scalars(
            select(InvoiceLine.position).where(
                InvoiceLine.invoice_id == statement.id, _is_of(source)
            )
        ).one_or_none() or _refuse_source(source)
    lines = _issued_lines(session, statement, position, limit + 1)
    # The last line of a statement is its rounding.
    rounding = session.scalars(
        select(InvoiceLine.amount)
        .where(InvoiceLine.invoice_id == statement.id)
        .order_by(InvoiceLine.position.desc())
        .limit(1)
    ).one()
    totals = _totals(batch=statement.total - rounding, rounding=rounding)
    return _Page(lines[:limit], totals, len(lines) > limit)


def _draft_page(session: Session, draft: Invoice, limit: int, source: _Source | None) -> _Page:
    after = None if source is None else _place_of(session, draft, source)
    lines = _draft_lines(session, draft, after, limit)
    if len(lines) == limit:
        # At least the rounding line is left.
        return _Page(lines, dict.fromkeys(_totals(batch=ZERO, rounding=ZERO)), True)
    last = _place(lines[-1]) if lines else after
    exact = _sum_until(session, draft, last) if last else ZERO
    rounding = statements.rounding_line(exact)
    totals = _totals(batch=exact, rounding=rounding.amount)
    return _Page([*lines, rounding], totals, False)


def _place_of(session: Session, draft: Invoice, source: _Source) -> Place:
    rows = select(Invoice.issued_at).where(Invoice.id == source.id, *statements.of_month(draft))
    if source.is_credit:
        rows = select(CreditNote.created_at).where(
            CreditNote.id == source.id, *statement_credits.of_month(draft)
        )
    at = session.execute(rows).scalar_one_or_none()
    return _refuse_source(source) if at is None else Place(at, source.id, source.is_credit)


SEND = "Send the `invoice_id` or `credit_note_id` of the last line of the page before."


def _parse_source(after: str) -> _Source:
    for kind in _SOURCES.values():
        if (id := ids.parse(kind, after)) is not None:
            return _Source(kind == _SOURCES[True], id)
    raise InvalidRequest(
        f"after: {after[:QUOTED_CHARS]!r} is the id of no invoice or credit note. {SEND}",
        param="after",
    )


# By whether it is a credit note.
_SOURCES: dict[bool, ids.Kind] = {False: "inv", True: "cn"}


def _refuse_source(source: _Source) -> NoReturn:
    raise InvalidRequest(
        f"after: the statement has no line of {ids.render(_SOURCES[source.is_credit], source.id)}."
        f" {SEND}",
        param="after",
    )


class _StatementReader:
    """A cursor in a statement, with the sums of the lines before it. Keyset pagination.

    One thread at a time calls it: a thread of the API's pool.
    """

    def __init__(self, owner: Owner, month: date) -> None:
        self._statement = statements.draft_statement(owner, month)
        self._after: Any = None
        self._sums = {"batch": ZERO, "rounding": ZERO}
        self._is_over = False

    @money.exact
    def read(self) -> bytes:
        """The next piece; empty at the end."""
        if self._is_over:
            return b""
        is_first = self._after is None
        with db.reading() as session:
            if is_first:
                self._statement = (
                    statements.issued_statement(session, self._statement) or self._statement
                )
            lines = self._lines(session)
        for line in lines:
            self._sums[line.kind] += line.amount
        shown = b",".join(orjson.dumps(_render_line(line)) for line in lines)
        content = b""
        if is_first:
            content = orjson.dumps(_head(self._statement))[:-1] + b',"lines":[' + shown
        elif shown:
            content = b"," + shown
        if self._is_over:
            ending = {**_totals(**self._sums), "has_more": False}
            content += b"]," + orjson.dumps(ending)[1:]
        return content

    def _lines(self, session: Session) -> Sequence[Any]:
        """The next lines; the rounding line comes last."""
        if self._statement.id is not None:
            lines = _issued_lines(session, self._statement, self._after or 0, PAGE_LINES)
            self._is_over, self._after = len(lines) < PAGE_LINES, lines and lines[-1].position
            return lines
        batches = _draft_lines(session, self._statement, self._after, PAGE_LINES)
        self._is_over = len(batches) < PAGE_LINES
        self._after = batches and _place(batches[-1])
        if not self._is_over:
            return batches
        exact = sum((line.amount for line in batches), self._sums["batch"])
        return [*batches, statements.rounding_line(exact)]


def _issued_lines(
    session: Session, statement: Invoice, after: int, limit: int
) -> Sequence[InvoiceLine]:
    lines = select(InvoiceLine).where(
        InvoiceLine.invoice_id == statement.id, InvoiceLine.position > after
    )
    return session.scalars(lines.order_by(InvoiceLine.position).limit(limit)).all()


def _draft_lines(
    session: Session, draft: Invoice, after: Place | None, limit: int
) -> Sequence[Any]:
    """The next lines: those of batches, then those of credit notes."""
    lines: list[Any] = []
    if after is None or not after.is_credit:
        lines += session.execute(statements.batch_lines(draft, after).limit(limit))
        after = None
    if len(lines) < limit:
        key = None if after is None else after.key
        rows = statement_credits.lines(draft, key).limit(limit - len(lines))
        lines += session.execute(rows)
    return lines


def _place(line: Any) -> Place:
    is_credit = line.source_credit_id is not None
    return Place(line.issued_at, line.source_credit_id or line.source_invoice_id, is_credit)


def _sum_until(session: Session, month: Invoice, last: Place) -> Decimal:
    """The sum of the month's lines up to one of them.

    An invoice that was added since is not in it, unless the last line is a credit note's: then all
    invoices of the month are.
    """
    invoiced = select(func.coalesce(func.sum(Invoice.total), ZERO)).where(
        *statements.of_month(month)
    )
    if not last.is_credit:
        up_to = tuple_(Invoice.issued_at, Invoice.id) <= last.key
        return session.execute(invoiced.where(up_to)).scalar_one()
    credited = select(func.coalesce(func.sum(CreditNote.amount), ZERO)).where(
        *statement_credits.of_month(month),
        tuple_(CreditNote.created_at, CreditNote.id) <= last.key,
    )
    return session.execute(invoiced).scalar_one() - session.execute(credited).scalar_one()


def _head(statement: Invoice) -> dict[str, Any]:
    """The fields before the lines."""
    is_issued = statement.id is not None
    return {
        "id": ids.render("inv", statement.id) if is_issued else None,
        "object": "statement",
        "status": "issued" if is_issued else "draft",
        "month": f"{statement.month:%Y-%m}",
        "livemode": statement.livemode,
        "payable": statement.livemode and is_issued,
        "account_id": ids.render("acct", statement.account_id),
        "currency": statement.currency,
        "issued_at": int(statement.issued_at.timestamp()) if is_issued else None,
    }


def _totals(*, batch: Decimal, rounding: Decimal) -> dict[str, str]:
    """The fields after the lines."""
    return {
        "exact_total": money.render(batch),
        "rounding": money.render(rounding),
        "total": money.render(batch + rounding),
    }


def _render_line(line: Any) -> dict[str, Any]:
    """`line`: an InvoiceLine, or a row of `batch_lines`."""
    is_credit = line.source_credit_id is not None
    return {
        "kind": "credit" if is_credit else line.kind,
        "description": line.description,
        "invoice_id": (
            None if line.source_invoice_id is None else ids.render("inv", line.source_invoice_id)
        ),
        "credit_note_id": ids.render("cn", line.source_credit_id) if is_credit else None,
        "reason": line.reason,
        "amount": money.render(line.amount),
    }
