"""Extension: the invoice of a batch, and the statement of a month."""

from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from xalen_batch import batches
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import BriefBiller, calling
from xalen_batch.api.http.responses import Stream
from xalen_batch.api.money_schemas import InvoiceObject, StatementObject
from xalen_batch.billing import invoices, statements

router = APIRouter(prefix="/v1", tags=["extensions"])


@router.get("/batches/{batch_id}/invoice", response_model=InvoiceObject)
@calling(Scope.BILLING)
def get_invoice(session: Session, caller: Caller, batch_id: str) -> dict[str, Any]:
    """The invoice of a batch that has ended: exact, never rounded. Amounts are strings."""
    return invoices.render(invoices.of_batch(session, batches.get(session, caller, batch_id)))


@router.get("/statements/{month}", response_model=StatementObject)
def get_statement(caller: BriefBiller, month: str) -> Response:
    """The sum of the batch invoices of a month, `2026-11`, rounded once; a draft until the month is
    over.
    """
    return Stream(statements.pieces(caller, statements.parse_month(month)))
