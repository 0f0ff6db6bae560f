"""Credit notes on batches that were billed in the past, for tests."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text, update

from tests.conftest import as_owner
from tests.statements import IN_MARCH, an_invoice
from xalen_batch import db
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing import credit_notes
from xalen_batch.models import Batch, CreditNote, Invoice


def billed(caller: Caller, total: str, at: datetime = IN_MARCH) -> UUID:
    """The id of a batch with an invoice of this amount."""
    invoice = an_invoice(caller, total, at)
    with db.transaction() as session:
        found = session.get_one(Invoice, invoice).batch_id
        assert found is not None
        return found


def credit(batch_id: UUID, reason: str = "late", **options: Any) -> CreditNote:
    with db.transaction() as session:
        return credit_notes.create(
            session, session.get_one(Batch, batch_id), reason=reason, **options
        )


def backdate(note: CreditNote, at: datetime = IN_MARCH) -> CreditNote:
    """Move the time of its creation, as if it had been made then."""
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(update(CreditNote).where(CreditNote.id == note.id).values(created_at=at))
    return note
