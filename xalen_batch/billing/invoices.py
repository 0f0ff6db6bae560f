"""Invoices of batches: derived from sums over results, exact to the last digit, immutable."""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from xalen_batch import ids, log, money
from xalen_batch.accounts.accounts import Owner
from xalen_batch.billing import sums
from xalen_batch.billing.charges import CACHED_INPUT, USAGE_COUNTED
from xalen_batch.billing.sums import ModelSums
from xalen_batch.errors import QUOTED_CHARS, NotFound
from xalen_batch.models import Batch, Invoice, InvoiceLine, ScheduleRun
from xalen_batch.models.base import table_of
from xalen_batch.states import BatchStatus

logger = log.get(__name__)

NO_PRICE = "no_price"
ZERO = Decimal(0)


class Mismatch(Exception):
    """The lines of an invoice do not sum to the charges of the results: a bug of ours.

    The invoice is not issued.
    """


@money.exact
def issue(session: Session, batch: Batch) -> Invoice:
    """Issue the batch's invoice, in the transaction that ends the batch.

    Returns the existing invoice if there is one. Its lines are derived from the sums of tokens;
    raises Mismatch unless their total equals the sum of the charges to the last digit.
    """
    ended = sums.of_batch(session, batch)
    lines = _lines(batch, ended)
    charged = sum((model.charged for model in ended), ZERO)
    if _total(lines) != charged and _prices_cached(batch):
        # A worker of a version without this component charges cached tokens as other input.
        logger.warning("invoice.cached_as_input", batch_id=batch.id)
        ended = sums.of_results(session, batch.id)
        lines = _lines(batch, ended)
    total = _total(lines)
    if total != charged:
        logger.error(
            "invoice.mismatch", batch_id=batch.id, invoiced=str(total), charged=str(charged)
        )
        raise Mismatch(
            f"batch {batch.id}: the invoice's lines sum to {total}, the charges of its results to"
            f" {charged}"
        )
    invoice = Invoice(
        account_id=batch.account_id,
        livemode=batch.livemode,
        batch_id=batch.id,
        schedule_id=batch.schedule_id,
        schedule_name=_schedule_name(session, batch),
        total=total,
        lines=lines,
    )
    if store(session, invoice, lines):
        return invoice
    return session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one()


def of_batch(session: Session, batch: Batch) -> Invoice:
    """The invoice of a batch. Raises NotFound, with the reason, if it has none."""
    invoice = _find(session, batch)
    if invoice is not None:
        return invoice
    name = ids.render("batch", batch.id)
    if batch.status == BatchStatus.FAILED:
        raise NotFound(
            f"Batch {name} failed validation: nothing ran and nothing is billed, so it has no"
            " invoice."
        )
    raise NotFound(f"Batch {name} is {batch.status}; its invoice is issued when it ends.")


def get(session: Session, owner: Owner, public_id: str) -> Invoice:
    """The invoice of a batch of this owner, by the invoice's own id. Raises NotFound."""
    id = ids.parse("inv", public_id)
    invoice = None
    if id is not None:
        invoice = session.scalars(
            select(Invoice).where(
                Invoice.id == id,
                Invoice.account_id == owner.account_id,
                Invoice.livemode == owner.livemode,
                Invoice.batch_id.is_not(None),
            )
        ).one_or_none()
    if invoice is None:
        raise NotFound(f"No such invoice of a batch: {public_id[:QUOTED_CHARS]}")
    return invoice


def totals(session: Session, batch_ids: Iterable[UUID]) -> dict[UUID, Decimal]:
    """The exact totals of the invoices of batches, by the batch's id."""
    rows = session.execute(
        select(Invoice.batch_id, Invoice.total).where(Invoice.batch_id.in_(list(batch_ids)))
    )
    return {batch_id: total for batch_id, total in rows if batch_id is not None}


def counted_tokens(invoice: Invoice) -> dict[str, int]:
    """{component: tokens} on a batch's invoice that xalen-batch counted."""
    counted = dict.fromkeys(("input", "output"), 0)
    for line in invoice.lines:
        if line.reason == USAGE_COUNTED and line.component is not None:
            counted[line.component] += int(line.quantity or 0)
    return counted


def not_billed(invoice: Invoice, reason: str) -> int:
    """The number of a batch's requests that ended for a reason: a code, or `http_` and a status."""
    return sum(
        int(line.quantity or 0)
        for line in invoice.lines
        if line.kind == "not_billed" and line.reason == reason
    )


def _find(session: Session, batch: Batch) -> Invoice | None:
    return session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one_or_none()


def _schedule_name(session: Session, batch: Batch) -> str | None:
    """The schedule's name when it created the batch's run; a later name changes no invoice."""
    if batch.run_id is None:
        return None
    name: str = session.execute(
        select(ScheduleRun.definition["name"].astext).where(ScheduleRun.id == batch.run_id)
    ).scalar_one()
    return name


_INSERT = (
    postgresql.insert(table_of(Invoice))
    .on_conflict_do_nothing()
    .returning(table_of(Invoice).c.id, table_of(Invoice).c.issued_at)
)
_INSERT_LINES = insert(table_of(InvoiceLine))
_LINE_COLUMNS = [
    column.key
    for column in InvoiceLine.__mapper__.column_attrs
    if column.key not in ("invoice_id", "position")
]


def store(session: Session, invoice: Invoice, lines: Sequence[InvoiceLine]) -> bool:
    """Insert an invoice and its lines, in their order, and give it its id and time.

    Returns False, and inserts nothing, if the batch or the month has an invoice.
    """
    header = {
        "id": ids.new(),
        "account_id": invoice.account_id,
        "livemode": invoice.livemode,
        "batch_id": invoice.batch_id,
        "month": invoice.month,
        "schedule_id": invoice.schedule_id,
        "schedule_name": invoice.schedule_name,
        "currency": money.CURRENCY,
        "total": invoice.total,
    }
    inserted = session.execute(_INSERT, header).one_or_none()
    if inserted is None:
        return False
    invoice.id, invoice.issued_at = inserted
    invoice.currency = money.CURRENCY
    rows = [
        {
            "invoice_id": invoice.id,
            "position": position,
            **{column: getattr(line, column) for column in _LINE_COLUMNS},
        }
        for position, line in enumerate(lines, start=1)
    ]
    if rows:
        session.execute(_INSERT_LINES, rows)
    return True


def _lines(batch: Batch, ended: Sequence[ModelSums]) -> list[InvoiceLine]:
    return [*_usage_lines(batch, ended), *_not_billed_lines(ended)]


def _total(lines: Sequence[InvoiceLine]) -> Decimal:
    return sum((line.amount for line in lines), ZERO)


def _prices_cached(batch: Batch) -> bool:
    return any(CACHED_INPUT in price for price in batch.price_snapshot.values())


def _usage_lines(batch: Batch, ended: Sequence[ModelSums]) -> Iterator[InvoiceLine]:
    """A line per model and component, then the discount on them, then tokens without a price.

    Tokens that xalen-batch counted have lines of their own.
    """
    gross = ZERO
    unpriced = []
    for used in _usage(batch, ended):
        price = batch.price_snapshot.get(used.model, {}).get(used.component)
        if price is None:
            logger.warning(
                "usage.unpriced",
                batch_id=batch.id,
                model=used.model,
                component=used.component,
                tokens=used.tokens,
            )
            unpriced.append(_unpriced_line(used))
        else:
            line = _usage_line(used, Decimal(price), answered_by=batch.backend_of(used.model))
            gross += line.amount
            yield line
    yield InvoiceLine(
        kind="discount",
        description=f"Batch discount, {_percent(batch.discount_rate)}",
        unit_price=batch.discount_rate,
        amount=money.discount(gross, batch.discount_rate),
    )
    yield from unpriced


class _Used(NamedTuple):
    """The tokens of one component of one model.

    `cached`: the cached tokens among them, which cost what the others cost.
    """

    model: str
    component: str
    tokens: int
    is_counted: bool = False
    cached: int = 0

    @property
    def description(self) -> str:
        words = f"{self.model}, {self.component.replace('_', ' ')} tokens"
        if self.is_counted:
            return f"{words} counted by xalen-batch"
        return (
            f"{words}, of which {self.cached} cached, at the input price" if self.cached else words
        )


def _usage(batch: Batch, ended: Sequence[ModelSums]) -> Iterator[_Used]:
    """The tokens of the lines that succeeded, without components that have none."""
    for model in ended:
        # Tokens that xalen-batch counted have no cached ones among them.
        read = model.input_tokens - model.counted_input_tokens
        written = model.output_tokens - model.counted_output_tokens
        cheaper, cached = 0, model.cached_tokens
        if CACHED_INPUT in batch.price_snapshot.get(model.model, {}):
            cheaper, cached = cached, 0
        for used in (
            _Used(model.model, "input", read - cheaper, cached=cached),
            _Used(model.model, CACHED_INPUT, cheaper),
            _Used(model.model, "output", written),
            _Used(model.model, "input", model.counted_input_tokens, is_counted=True),
            _Used(model.model, "output", model.counted_output_tokens, is_counted=True),
        ):
            if used.tokens:
                yield used


def _usage_line(used: _Used, price: Decimal, *, answered_by: str | None) -> InvoiceLine:
    return InvoiceLine(
        kind="usage",
        description=used.description,
        model=used.model,
        component=used.component,
        quantity=Decimal(used.tokens),
        unit_price=price,
        reason=USAGE_COUNTED if used.is_counted else None,
        answered_by=answered_by,
        amount=money.gross(used.tokens, price),
    )


def _unpriced_line(used: _Used) -> InvoiceLine:
    return InvoiceLine(
        kind="not_billed",
        description=f"{used.description} that have no price",
        model=used.model,
        component=used.component,
        quantity=Decimal(used.tokens),
        reason=NO_PRICE,
        amount=ZERO,
    )


def _not_billed_lines(ended: Sequence[ModelSums]) -> Iterator[InvoiceLine]:
    """A line per model and reason of requests that did not succeed."""
    for model in ended:
        for reason, requests in sorted(model.not_billed.items()):
            yield InvoiceLine(
                kind="not_billed",
                # A line that validation skipped has no model.
                description=f"{model.model or 'Invalid lines'}, requests that did not succeed",
                model=model.model or None,
                quantity=Decimal(requests),
                reason=reason,
                amount=ZERO,
            )


@money.exact
def _percent(rate: Decimal) -> str:
    return f"{(rate * 100).normalize():f} %"


@money.exact
def render(invoice: Invoice) -> dict[str, Any]:
    """A batch's invoice as the API shows it, with amounts as exact strings. Deterministic.

    `payable`: false in test mode. Payment is due on the monthly statement, not on the invoice.
    """
    assert invoice.batch_id is not None
    return {
        "id": ids.render("inv", invoice.id),
        "object": "invoice",
        "status": "issued",
        "livemode": invoice.livemode,
        "payable": invoice.livemode,
        "account_id": ids.render("acct", invoice.account_id),
        "batch_id": ids.render("batch", invoice.batch_id),
        "schedule": (
            invoice.schedule_id
            and {"id": ids.render("sched", invoice.schedule_id), "name": invoice.schedule_name}
        ),
        "currency": invoice.currency,
        "issued_at": int(invoice.issued_at.timestamp()),
        "lines": [_render_line(line) for line in invoice.lines],
        "subtotal": money.render(
            sum((line.amount for line in invoice.lines if line.kind == "usage"), ZERO)
        ),
        "discount": money.render(
            sum((line.amount for line in invoice.lines if line.kind == "discount"), ZERO)
        ),
        "total": money.render(invoice.total),
    }


def _render_line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "description": line.description,
        "model": line.model,
        "component": line.component,
        "quantity": None if line.quantity is None else f"{line.quantity:f}",
        "unit_price": None if line.unit_price is None else money.render(line.unit_price),
        "reason": line.reason,
        "answered_by": line.answered_by,
        "amount": money.render(line.amount),
    }
