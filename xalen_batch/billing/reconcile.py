"""The proof: everything that is billed, derived once more from the results, and compared."""

from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch import ids, money
from xalen_batch.models import Batch, Invoice, Result
from xalen_batch.states import TERMINAL, BatchStatus


class Difference(NamedTuple):
    """What does not agree: where (a batch's or a statement's id), what, and both values as text."""

    where: str
    what: str
    expected: str
    found: str


COUNTERS = ("completed", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
LINES_AT_A_TIME = 1_000


def differences(session: Session) -> Iterator[Difference]:
    """All differences, batch by batch, then statement by statement; memory stays bounded. None at all is what should be."""
    for batch in session.scalars(select(Batch).order_by(Batch.id).execution_options(yield_per=100)):
        yield from _of_batch(session, batch)
    for statement in session.scalars(select(Invoice).where(Invoice.month.is_not(None)).order_by(Invoice.id)):
        yield from _of_statement(session, statement)


def _of_batch(session: Session, batch: Batch) -> Iterator[Difference]:
    name = ids.render("batch", batch.id)
    totals = dict.fromkeys(COUNTERS, 0)
    charged, usage = Decimal(0), dict[tuple[str, str], int]()
    for row in _results(session, batch):
        expected = _amount(batch, row)
        if row.amount != expected:
            yield Difference(name, f"charge of line {row.line_no}", str(expected), str(row.amount))
        is_success = row.status_code is not None and row.status_code < 300
        totals["completed" if is_success else "failed"] += 1
        if is_success and expected is not None:
            charged += expected
            for counter in COUNTERS[2:]:
                totals[counter] += getattr(row, counter)
            for component in ("input", "output"):
                if component in batch.price_snapshot[row.model]:
                    key = (row.model, component)
                    usage[key] = usage.get(key, 0) + getattr(row, f"{component}_tokens")
    if batch.status not in TERMINAL:
        return
    for counter, value in totals.items():
        if getattr(batch, counter) != value:
            yield Difference(name, counter, str(value), str(getattr(batch, counter)))
    if batch.status != BatchStatus.FAILED:
        yield from _of_invoice(session, batch, name, charged, usage)


def _results(session: Session, batch: Batch) -> Iterator[Any]:
    columns = (getattr(Result, name) for name in ("line_no", "model", "status_code", "amount", *COUNTERS[2:]))
    yield from session.execute(
        select(*columns).where(Result.batch_id == batch.id).order_by(Result.line_no).execution_options(yield_per=LINES_AT_A_TIME)
    )


def _amount(batch: Batch, row: Any) -> Decimal | None:
    """The exact price of a line, from the list price down: another way than the one it was charged by."""
    if row.status_code is None or row.status_code >= 300:
        return None
    price = batch.price_snapshot[row.model]
    with localcontext(money.EXACT):
        gross = sum((money.gross(getattr(row, f"{component}_tokens"), Decimal(price[component])) for component in price), Decimal(0))
        return gross + money.discount(gross, batch.discount_rate)


def _of_invoice(session: Session, batch: Batch, name: str, charged: Decimal, usage: dict[tuple[str, str], int]) -> Iterator[Difference]:
    invoice = session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one_or_none()
    if invoice is None:
        yield Difference(name, "invoice", "one", "none")
        return
    if invoice.livemode != batch.livemode or invoice.account_id != batch.account_id:
        yield Difference(name, "owner of the invoice", f"{batch.account_id} {batch.livemode}", f"{invoice.account_id} {invoice.livemode}")
    if invoice.total != charged:
        yield Difference(name, "total of the invoice", str(charged), str(invoice.total))
    with localcontext(money.EXACT):
        lines = sum((line.amount for line in invoice.lines), Decimal(0))
    if lines != invoice.total:
        yield Difference(name, "sum of the invoice's lines", str(invoice.total), str(lines))
    billed = {(line.model, line.component): line.quantity for line in invoice.lines if line.kind == "usage"}
    for key, tokens in usage.items():
        if billed.get(key) != tokens:
            yield Difference(name, f"billed {key[1]} tokens of {key[0]}", str(tokens), str(billed.get(key)))


def _of_statement(session: Session, statement: Invoice) -> Iterator[Difference]:
    name = ids.render("inv", statement.id)
    sources: list[UUID] = [line.source_invoice_id for line in statement.lines if line.source_invoice_id is not None]
    exact = session.scalar(
        select(func.coalesce(func.sum(Invoice.total), 0)).where(
            Invoice.id.in_(sources), Invoice.account_id == statement.account_id, Invoice.livemode == statement.livemode
        )
    )
    expected = money.payable(exact or Decimal(0))
    if statement.total != expected:
        yield Difference(name, "total of the statement", str(expected), str(statement.total))
    with localcontext(money.EXACT):
        lines = sum((line.amount for line in statement.lines), Decimal(0))
    if lines != statement.total:
        yield Difference(name, "sum of the statement's lines", str(statement.total), str(lines))
