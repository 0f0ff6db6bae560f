"""Invoices of a month in the past, and its statement, for tests."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from tests import billing, factories
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing import statement_pages
from xalen_batch.models import Invoice

MARCH = date(2026, 3, 1)
IN_MARCH = datetime(2026, 3, 15, tzinfo=UTC)


def a_caller(*, livemode: bool = True) -> Caller:
    with db.transaction() as session:
        return factories.caller(session, livemode=livemode)


def an_invoice(caller: Caller, total: str, issued_at: datetime = IN_MARCH) -> UUID:
    """An invoice issued at some time in the past."""
    with db.transaction() as session:
        batch = factories.batch(session, caller, factories.input_file(session, caller, b""))
        invoice = Invoice(
            id=ids.new(),
            account_id=caller.account_id,
            livemode=caller.livemode,
            batch_id=batch.id,
            currency="USD",
            total=Decimal(total),
            issued_at=issued_at,
        )
        session.add(invoice)
        return invoice.id


def read(caller: Caller, month: date = MARCH) -> dict[str, Any]:
    """Read a statement as a GET does."""
    found: dict[str, Any] = json.loads(b"".join(statement_pages.pieces(caller, month)))
    return found


def issue_due() -> int:
    with db.transaction() as session:
        return billing.issue_due(session)
