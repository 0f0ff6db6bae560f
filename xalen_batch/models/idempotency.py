"""Idempotency keys, with the answers that are replayed for them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class IdempotencyKey(Base):
    """Inserted in the transaction that creates the object, so that both exist or neither does."""

    __tablename__ = "idempotency_keys"

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    # Method and path, and a hash of the body: the same key with another request is an error.
    route: Mapped[str]
    fingerprint: Mapped[bytes]
    answer: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
