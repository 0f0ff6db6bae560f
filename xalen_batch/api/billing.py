"""Extension: the invoice of a batch, and the statement of a month."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch import db
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import BriefBiller, calling
from xalen_batch.api.http.responses import JSON, Stream
from xalen_batch.api.money_schemas import InvoiceObject, StatementObject
from xalen_batch.batches import batches
from xalen_batch.billing import invoices, statement_pages, statements
from xalen_batch.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["extensions"])


@router.get("/batches/{batch_id}/invoice", response_model=InvoiceObject)
@calling(Scope.BILLING)
def get_invoice(session: Session, caller: Caller, batch_id: str) -> dict[str, Any]:
    """The invoice of a batch that has ended: exact, never rounded. Amounts are strings."""
    return invoices.render(
        invoices.of_batch(session, batches.get(session, caller, batch_id, or_ledger=True))
    )


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
        Query(description="The `invoice_id` of the last line of the page before; with `limit`."),
    ] = None,
) -> Response:
    """The sum of the batch invoices of a month, `2026-11`, rounded once; a draft until the month is
    over.
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
