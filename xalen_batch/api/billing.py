"""Extension: what a batch costs, exactly, and what a month is payable with."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from xalen_batch import batches
from xalen_batch.accounts import Caller, Scope
from xalen_batch.api.deps import calling
from xalen_batch.billing import invoices, statements

router = APIRouter(prefix="/v1", tags=["extensions"])


@router.get("/batches/{batch_id}/invoice")
@calling(Scope.BILLING)
def get_invoice(session: Session, caller: Caller, batch_id: str) -> dict[str, Any]:
    """The invoice of a batch that has ended: exact, never rounded. Amounts are strings."""
    return invoices.render(invoices.of_batch(session, batches.get(session, caller, batch_id)))


@router.get("/statements/{month}")
@calling(Scope.BILLING)
def get_statement(session: Session, caller: Caller, month: str) -> dict[str, Any]:
    """The sum of the batch invoices of a month, `2026-11`, rounded once; a draft until the month is over."""
    first_day = statements.parse_month(month)
    return statements.statement(session, account_id=caller.account_id, livemode=caller.livemode, month=first_day)
