"""Announce: record the events of a batch that has ended, in the transaction that ends it."""

import orjson
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from xalen_batch import events
from xalen_batch.events import Happened
from xalen_batch.models import Batch, Invoice
from xalen_batch.models.base import table_of
from xalen_batch.models.events import EventType
from xalen_batch.models.results import Result
from xalen_batch.states import BatchStatus, QueuedCall


def ended(session: Session, batch: Batch, invoice: Invoice | None = None) -> None:
    """Record the events of the end of a batch and of its invoice. Ledgers and flex calls, whose
    clients wait for the answer, have those of the invoice alone.
    """
    changes = []
    if batch.call == QueuedCall.BACKGROUND:
        changes.append(Happened(_of_response(session, batch), batch.id))
    elif batch.ledger is None and batch.call is None:
        changes.append(Happened(EventType(f"batch.{batch.status}"), batch.id))
    if invoice is not None:
        changes.append(Happened(EventType.INVOICE_ISSUED, invoice.id))
    events.record(session, batch, *changes)


_RESULT = (
    select(table_of(Result).c.status_code, table_of(Result).c.body)
    .where(table_of(Result).c.batch_id == bindparam("batch_id"))
    .limit(1)
)


def _of_response(session: Session, batch: Batch) -> EventType:
    """The event of a background Response: of its own status if it was answered."""
    if batch.status == BatchStatus.CANCELLED:
        return EventType.RESPONSE_CANCELLED
    row = session.execute(_RESULT, {"batch_id": batch.id}).one_or_none()
    if row is None or row.status_code is None or row.status_code >= 300:
        return EventType.RESPONSE_FAILED
    status = orjson.loads(row.body).get("status")
    return _OF_STATUS.get(status, EventType.RESPONSE_COMPLETED)


_OF_STATUS = {
    "incomplete": EventType.RESPONSE_INCOMPLETE,
    "failed": EventType.RESPONSE_FAILED,
}
