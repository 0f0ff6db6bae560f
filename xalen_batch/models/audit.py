"""The audit log. Triggers insert its entries, and refuse to update or delete them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Identity, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class AuditEntry(Base):
    """One change of a key, a price, a schedule or an invoice."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_at", "at"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    # `key_…`: an API key. `cli:…`: a user of the operating system. `database:…`: a role of
    # PostgreSQL. `system`: a process of ours.
    actor: Mapped[str]
    # `key.created`, `schedule.changed`, `price.deleted` …
    action: Mapped[str]
    # The public id of the changed object.
    object_id: Mapped[str]
    account_id: Mapped[UUID | None]
    livemode: Mapped[bool | None]
    # The fields that differ. `before` is null for a new object, `after` for a deleted one.
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
