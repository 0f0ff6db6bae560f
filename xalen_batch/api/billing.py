"""Extension: what a batch costs, exactly, and what a month is payable with."""

from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Path

from xalen_batch import batches
from xalen_batch.api.deps import BillingReader, Transaction
from xalen_batch.billing import invoices, statements

router = APIRouter(prefix="/v1", tags=["extensions"])


@router.get("/batches/{batch_id}/invoice")
def get_invoice(session: Transaction, caller: BillingReader, batch_id: str) -> dict[str, Any]:
    """The invoice of a batch that has ended: exact, never rounded. Amounts are strings."""
    return invoices.render(invoices.of_batch(session, batches.get(session, caller, batch_id)))


@router.get("/statements/{month}")
def get_statement(
    session: Transaction, caller: BillingReader, month: Annotated[str, Path(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$", examples=["2026-11"])]
) -> dict[str, Any]:
    """The sum of a month's batch invoices, rounded once; a draft until the month is over."""
    return statements.statement(session, account_id=caller.account_id, livemode=caller.livemode, month=date.fromisoformat(f"{month}-01"))
