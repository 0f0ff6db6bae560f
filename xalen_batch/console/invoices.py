"""Invoices of batches and statements of months: why an amount is what it is, line by line."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch import files, ids
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api import billing as api
from xalen_batch.batches import batches
from xalen_batch.billing import credit_notes, invoices, statement_pages, statements
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.models import Invoice

router = APIRouter(prefix=f"{PATH}/invoices", route_class=PageRoute, include_in_schema=False)
ON_PAGE = 50
FIRST_MONTH = date(1970, 1, 1)


@router.get("")
@routes.page(Scope.BILLING)
def show_statement(
    request: Request,
    session: Session,
    visitor: Visitor,
    month: Annotated[str, Query(max_length=20)] = "",
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """The statement of a month, this one unless another is named: its invoices and their sum."""
    this, first_day = _first_day(""), _first_day(month)
    found = statement_pages.page(session, visitor.caller, first_day, limit=ON_PAGE, after=after)
    last = next((line for line in reversed(found["lines"]) if line["kind"] != "rounding"), None)
    following = None
    if found["has_more"] and last is not None:
        behind = last["credit_note_id"] or last["invoice_id"]
        following = f"{PATH}/invoices?month={found['month']}&after={behind}"
    return views.show(
        request,
        visitor,
        "statement.html",
        statement=found,
        name=f"{first_day:%B %Y}",
        before=None if first_day <= FIRST_MONTH else f"{_month_before(first_day):%Y-%m}",
        next_month=f"{_month_after(first_day):%Y-%m}" if first_day < this else None,
        following=following,
        is_first=after is None,
    )


@router.get("/csv")
@routes.brief(Scope.BILLING)
def download_month(
    request: Request, visitor: Visitor, month: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """The invoices of a month as CSV, of this one unless another is named."""
    first_day = _first_day(month)
    return api.invoices_of(visitor.caller, first_day, first_day, ())


@router.get("/{id}")
@routes.page(Scope.BILLING)
def show_invoice(request: Request, session: Session, visitor: Visitor, id: str) -> Response:
    """An invoice, by its own id or by its batch's."""
    if ids.parse("inv", id) is not None:
        invoice = invoices.get(session, visitor.caller, id)
    else:
        batch = batches.get(session, visitor.caller, id, or_ledger=True)
        invoice = invoices.of_batch(session, batch)
    return views.show(request, visitor, "invoice.html", **_around(session, visitor, invoice))


@router.get("/{id}/lines")
@routes.brief(Scope.BILLING)
def download_lines(request: Request, visitor: Visitor, id: str) -> Response:
    """The lines behind the invoice of a batch, as CSV; they sum to it."""
    return api.lines_of_invoice(visitor.caller, id)


def _around(session: Session, visitor: Visitor, invoice: Invoice) -> dict[str, Any]:
    """An invoice with the name of its input file and the credit notes on it."""
    shown = invoices.render(invoice)
    batch = batches.get(session, visitor.caller, shown["batch_id"], or_ledger=True)
    usage = [line for line in shown["lines"] if line["kind"] == "usage"]
    credited = credit_notes.of_batch(session, batch.id)
    return {
        "invoice": shown,
        "name": files.names(session, [batch.input_file_id]).get(batch.input_file_id)
        or shown["batch_id"],
        "has_page": batch.ledger is None,
        "usage": usage,
        "discounts": [line for line in shown["lines"] if line["kind"] == "discount"],
        "free": [line for line in shown["lines"] if line["kind"] == "not_billed"],
        "credits": [credit_notes.render(note) for note in credited],
        "left": invoice.total - sum((note.amount for note in credited), Decimal(0)),
        "created_at": int(batch.created_at.timestamp()),
    }


def _first_day(month: str) -> date:
    """The first day of a month, of this one without a name. Raises InvalidRequest."""
    return statements.parse_month(month) if month else datetime.now(UTC).date().replace(day=1)


def _month_before(month: date) -> date:
    return date(month.year - (month.month == 1), (month.month - 2) % 12 + 1, 1)


def _month_after(month: date) -> date:
    return date(month.year + (month.month == 12), month.month % 12 + 1, 1)
