"""The audit log: who made, changed or ended which key, price, schedule or invoice, and what it was
before.

Triggers of the database write it, in the transaction of the change, so that no change goes without
(docs/decisions/0018). Here it is said who acts, and the log is read.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from xalen_batch.models import AuditEntry

# Who acts where nobody says who: `db.engine` gives it to every connection of ours.
SYSTEM = "system"
SETTING = "xalen.actor"


def sign(session: Session, actor: str) -> None:
    """Whatever changes from here to the end of this transaction is this one's doing."""
    session.execute(select(func.set_config(SETTING, actor, True)))


def entries(
    session: Session, *, since: datetime | None = None, object_id: str | None = None, limit: int
) -> Sequence[AuditEntry]:
    """The latest entries, in the order in which they were written."""
    rows = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if since is not None:
        rows = rows.where(AuditEntry.at >= since)
    if object_id is not None:
        rows = rows.where(AuditEntry.object_id == object_id)
    return session.scalars(rows).all()[::-1]
