"""Extension: the invoice of a batch, the statement of a month, and both as CSV."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch import csv_rows, db
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import long_work
from xalen_batch.api.deps import BriefBiller, calling
from xalen_batch.api.description import csv, document
from xalen_batch.api.http.responses import JSON, Stream
from xalen_batch.api.money_schemas import CreditNoteObject, InvoiceObject, StatementObject
from xalen_batch.api.schemas import ListObject
from xalen_batch.batches import batches
from xalen_batch.billing import (
    credit_notes,
    invoices,
    invoices_csv,
    pdf,
    statement_pages,
    statements,
)
from xalen_batch.errors import InvalidRequest
from xalen_batch.fields import MOST_NOTES, MetadataKey
from xalen_batch.models import Account
from xalen_batch.paging import Order
from xalen_batch.results import lines_csv

router = APIRouter(prefix="/v1", tags=["extensions"])


@router.get("/batches/{batch_id}/invoice", response_model=InvoiceObject)
@calling(Scope.BILLING)
def get_invoice(session: Session, caller: Caller, batch_id: str) -> dict[str, Any]:
    """The invoice of a batch that has ended: exact, never rounded. Amounts are strings."""
    return invoices.render(
        invoices.of_batch(session, batches.get(session, caller, batch_id, or_ledger=True))
    )


@router.get(
    "/batches/{batch_id}/invoice/lines.csv", response_class=Response, responses=csv("The lines.")
)
def download_invoice_lines(caller: BriefBiller, batch_id: str) -> Response:
    """Each line of a batch that has ended, with its tokens, prices, discount and amount, as CSV.

    The amounts sum to the invoice's total.
    """
    return lines_of_invoice(caller, batch_id)


def lines_of_invoice(caller: Caller, batch_id: str) -> Response:
    """The lines behind the invoice of a batch, as a download."""
    with db.reading() as session:
        batch = batches.get(session, caller, batch_id, or_ledger=True)
        invoices.of_batch(session, batch)
    return _download(lines_csv.pieces(batch), f"{batch_id}.csv")


@router.get("/invoices.csv", response_class=Response, responses=csv("The invoices."))
def download_invoices(
    caller: BriefBiller,
    first: Annotated[
        str | None,
        Query(alias="from", description="First month, `2026-11`; this month if left out."),
    ] = None,
    last: Annotated[
        str | None, Query(alias="to", description="Last month; that of `from` if left out.")
    ] = None,
    metadata: Annotated[
        list[MetadataKey] | None,
        Query(max_length=MOST_NOTES, description="Keys of metadata that become columns."),
    ] = None,
) -> Response:
    """The batch invoices of some months (UTC, by the time of issue) as CSV, the oldest first."""
    begin = (
        datetime.now(UTC).date().replace(day=1)
        if first is None
        else statements.parse_month(first, param="from")
    )
    end = begin if last is None else statements.parse_month(last, param="to")
    return invoices_of(caller, begin, end, metadata or ())


def invoices_of(caller: Caller, begin: date, end: date, metadata: Sequence[str]) -> Response:
    """The invoices of the months from `begin` to `end`, as a download."""
    pieces = invoices_csv.of_account(caller, begin, end, metadata=metadata)
    return _download(pieces, "invoices.csv")


def _download(pieces: Iterator[bytes], filename: str) -> Response:
    return Stream(pieces, headers=_attachment(filename), media_type=csv_rows.MEDIA_TYPE)


def _attachment(filename: str) -> dict[str, str]:
    return {
        "content-disposition": f'attachment; filename="{filename}"',
        "x-content-type-options": "nosniff",
    }


@router.get(
    "/batches/{batch_id}/invoice/pdf", response_class=Response, responses=document("The invoice.")
)
def download_invoice_pdf(caller: BriefBiller, batch_id: str) -> Response:
    """The invoice of a batch that has ended, as PDF."""
    with long_work.admitted(caller):
        with db.reading() as session:
            batch = batches.get(session, caller, batch_id, or_ledger=True)
            found = invoices.render(invoices.of_batch(session, batch))
            name = session.get_one(Account, caller.account_id).name
        return _document(pdf.of_invoice(found, name), f"{found['id']}.pdf")


@router.get(
    "/statements/{month}/pdf", response_class=Response, responses=document("The statement.")
)
def download_statement_pdf(caller: BriefBiller, month: str) -> Response:
    """The statement of a month as PDF, with at most 1,000 of its lines."""
    first_day = statements.parse_month(month)
    with long_work.admitted(caller):
        with db.reading() as session:
            found = statement_pages.page(
                session, caller, first_day, limit=pdf.MOST_LINES, after=None
            )
            name = session.get_one(Account, caller.account_id).name
        return _document(pdf.of_statement(found, name), f"statement-{month}.pdf")


def _document(content: bytes, filename: str) -> Response:
    return Response(content, headers=_attachment(filename), media_type=pdf.MEDIA_TYPE)


@router.get("/credit_notes")
@calling(Scope.BILLING)
def list_credit_notes(
    session: Session,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> ListObject[CreditNoteObject]:
    """Credit notes on batches, newest first unless `order` says otherwise."""
    found = credit_notes.page(session, caller, limit=limit, order=order, after=after)
    return ListObject[CreditNoteObject].of(
        [CreditNoteObject.model_validate(credit_notes.render(note)) for note in found.data],
        found.has_more,
    )


@router.get("/credit_notes/{credit_note_id}")
@calling(Scope.BILLING)
def get_credit_note(session: Session, caller: Caller, credit_note_id: str) -> CreditNoteObject:
    """What is given back of a batch's invoice; a line of the next statement."""
    note = credit_notes.get(session, caller, credit_note_id)
    return CreditNoteObject.model_validate(credit_notes.render(note))


@router.get("/statements/{month}", response_model=StatementObject)
def get_statement(
    caller: BriefBiller,
    month: str,
    limit: Annotated[
        int | None,
        Query(ge=1, le=statement_pages.PAGE_LINES, description="Lines of a page; all if left out."),
    ] = None,
    after: Annotated[
        str | None,
        Query(
            description=(
                "The `invoice_id` or `credit_note_id` of the last line of the page before; with"
                " `limit`."
            )
        ),
    ] = None,
) -> Response:
    """The sum of the batch invoices of a month, `2026-11`, less credit notes, rounded once.

    A draft until the month is over.
    """
    first_day = statements.parse_month(month)
    if limit is None:
        if after is not None:
            raise InvalidRequest(
                "after: pages need a `limit` too. Send one, or leave out `after` for all lines.",
                param="after",
            )
        return Stream(statement_pages.pieces(caller, first_day))
    with db.reading() as session:
        found = statement_pages.page(session, caller, first_day, limit=limit, after=after)
    return Response(orjson.dumps(found), media_type=JSON)
