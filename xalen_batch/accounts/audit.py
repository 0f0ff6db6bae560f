"""The audit log: each change of a key, price, schedule or invoice, with its actor.

Triggers write an entry in the transaction of the change, so no change lacks one
(docs/decisions/0018). This module sets the actor of a transaction, reads the log, and forgets old
entries.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from xalen_batch.models import AuditEntry

# The actor of a transaction that sets none; `db.engine` sets it for every connection.
SYSTEM = "system"
SETTING = "xalen.actor"
# Entries that `forget` deletes at most.
AT_ONCE = 1_000


def sign(session: Session, actor: str) -> None:
    """Set the actor in the audit log until the end of this transaction."""
    session.execute(select(func.set_config(SETTING, actor, True)))


def entries(
    session: Session, *, since: datetime | None = None, object_id: str | None = None, limit: int
) -> Sequence[AuditEntry]:
    """The latest `limit` entries, in the order in which they were written."""
    rows = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if since is not None:
        rows = rows.where(AuditEntry.at >= since)
    if object_id is not None:
        rows = rows.where(AuditEntry.object_id == object_id)
    return session.scalars(rows).all()[::-1]


def forget(session: Session, life: timedelta) -> int:
    """Delete some entries that are older than `life`, and older than 90 days; their number."""
    gone: int = session.execute(
        text("SELECT forget_audit(now() - :life, :most)"), {"life": life, "most": AT_ONCE}
    ).scalar_one()
    return gone
