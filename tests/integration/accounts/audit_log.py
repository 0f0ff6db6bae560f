"""Entries of the audit log, without those of prices."""

from sqlalchemy.orm import Session

from xalen_batch.accounts import audit
from xalen_batch.models import AuditEntry


def entries(session: Session, but: str = "price") -> list[AuditEntry]:
    session.flush()
    return [
        entry for entry in audit.entries(session, limit=1000) if not entry.action.startswith(but)
    ]
