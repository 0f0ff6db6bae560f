"""The invoice of a batch: exact, never rounded, derived from its results, immutable."""

from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from xalen_batch import ids, log, money
from xalen_batch.errors import NotFound, ServerError
from xalen_batch.models import Batch, Invoice, InvoiceLine, Result
from xalen_batch.states import BatchStatus

logger = log.get(__name__)

COMPONENTS = ("input", "output")


def issue(session: Session, batch: Batch) -> Invoice:
    """The batch's invoice, made from its results in this transaction; the one there is, if there is one.

    The caller holds the batch's row lock. Raises ServerError if the lines do not sum to the charges
    of the results, exactly: then nothing is issued, and the batch does not end.
    """
    issued = session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one_or_none()
    if issued is not None:
        return issued
    with localcontext(money.EXACT):
        lines = [*_usage_lines(session, batch), *_not_billed_lines(session, batch)]
        for position, line in enumerate(lines, start=1):
            line.position = position
        total = sum((line.amount for line in lines), Decimal(0))
        charged = session.scalar(select(func.coalesce(func.sum(Result.amount), 0)).where(Result.batch_id == batch.id))
    if total != charged:
        logger.error("invoice.mismatch", batch_id=batch.id.hex, invoiced=str(total), charged=str(charged))
        raise ServerError("The invoice does not match the charges of its lines, so it was not issued.")
    invoice = Invoice(
        id=ids.new(),
        account_id=batch.account_id,
        livemode=batch.livemode,
        batch_id=batch.id,
        currency=money.CURRENCY,
        total=total,
        lines=lines,
    )
    session.add(invoice)
    session.flush()
    session.refresh(invoice)
    return invoice


def of_batch(session: Session, batch: Batch) -> Invoice:
    """NotFound, with the reason, for a batch that has none."""
    invoice = session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one_or_none()
    if invoice is not None:
        return invoice
    name = ids.render("batch", batch.id)
    if batch.status == BatchStatus.FAILED:
        raise NotFound(
            f"Batch {name} failed validation: nothing was run and nothing is billed, so it has no invoice.", code="invoice_not_found"
        )
    raise NotFound(f"Batch {name} is {batch.status}; its invoice is issued when it ends.", code="invoice_not_found")


def _usage_lines(session: Session, batch: Batch) -> Iterator[InvoiceLine]:
    sums = session.execute(
        select(
            Result.model,
            func.sum(Result.input_tokens).label("input"),
            func.sum(Result.output_tokens).label("output"),
        )
        .where(Result.batch_id == batch.id, Result.amount.is_not(None))
        .group_by(Result.model)
        .order_by(Result.model)
    ).all()
    gross = Decimal(0)
    unpriced: list[InvoiceLine] = []
    for row in sums:
        for component in COMPONENTS:
            tokens = int(getattr(row, component))
            price = batch.price_snapshot.get(row.model, {}).get(component)
            if price is not None:
                line = _usage_line(row.model, component, tokens, Decimal(price))
                gross += line.amount
                yield line
            elif tokens:
                logger.warning("usage.unpriced", batch_id=batch.id.hex, model=row.model, component=component, tokens=tokens)
                unpriced.append(_unpriced_line(row.model, component, tokens))
    if sums:
        yield InvoiceLine(
            kind="discount", description="Batch discount", unit_price=batch.discount_rate, amount=money.discount(gross, batch.discount_rate)
        )
    yield from unpriced


def _usage_line(model: str, component: str, tokens: int, price: Decimal) -> InvoiceLine:
    return InvoiceLine(
        kind="usage",
        description=f"{model}, {component} tokens",
        model=model,
        component=component,
        quantity=Decimal(tokens),
        unit_price=price,
        amount=money.gross(tokens, price),
    )


def _unpriced_line(model: str, component: str, tokens: int) -> InvoiceLine:
    return InvoiceLine(
        kind="not_billed",
        description=f"{model}, {component} tokens without a price",
        model=model,
        component=component,
        quantity=Decimal(tokens),
        reason="no_price",
        amount=Decimal(0),
    )


def _not_billed_lines(session: Session, batch: Batch) -> Iterator[InvoiceLine]:
    reason = case((Result.error_code.is_not(None), Result.error_code), else_=func.concat("http_", Result.status_code))
    counts = session.execute(
        select(Result.model, reason.label("reason"), func.count().label("requests"))
        .where(Result.batch_id == batch.id, Result.amount.is_(None))
        .group_by(Result.model, "reason")
        .order_by(Result.model, "reason")
    )
    for row in counts:
        yield InvoiceLine(
            kind="not_billed",
            description=f"{row.model}, requests that did not succeed",
            model=row.model,
            quantity=Decimal(row.requests),
            reason=row.reason,
            amount=Decimal(0),
        )


def render(invoice: Invoice) -> dict[str, Any]:
    """The invoice as the API shows it; amounts are exact strings. The same invoice always gives the same bytes."""
    usage = sum((line.amount for line in invoice.lines if line.kind == "usage"), Decimal(0))
    discount = sum((line.amount for line in invoice.lines if line.kind == "discount"), Decimal(0))
    return {
        "id": ids.render("inv", invoice.id),
        "object": "invoice",
        "status": "issued",
        "livemode": invoice.livemode,
        # Counts towards a statement that is to be paid; test mode never does.
        "payable": invoice.livemode,
        "account_id": ids.render("acct", invoice.account_id),
        "batch_id": ids.render("batch", invoice.batch_id) if invoice.batch_id else None,
        "currency": invoice.currency,
        "issued_at": int(invoice.issued_at.timestamp()),
        "lines": [render_line(line) for line in invoice.lines],
        "list_price": money.render(usage),
        "discount": money.render(discount),
        "total": money.render(invoice.total),
    }


def render_line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "description": line.description,
        "model": line.model,
        "component": line.component,
        "quantity": None if line.quantity is None else f"{line.quantity:f}",
        "unit_price": None if line.unit_price is None else money.render(line.unit_price),
        "reason": line.reason,
        "amount": money.render(line.amount),
    }
